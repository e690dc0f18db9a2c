// The numbers and choices of the form, with the limits of the server's schema.
import { fieldOf } from "../../core/schema.js";
import { html } from "../../core/ui.js";
import { Field, NumberField, SelectField } from "./fields.js";
import { choicesOf } from "./problems.js";

const presetOf = (model, name) => model?.presets?.find((preset) => preset.name === name) ?? null;

export function SamplingFields({ draft, change, model, problems, schemas }) {
  const preset = presetOf(model, draft.preset);
  const rule = (field) => fieldOf(schemas, "PromptItem", field);
  return html`
    <div class="fields-3">
      <${NumberField} label="Steps" value=${draft.steps} rule=${rule("sample_steps")} problem=${problems.steps}
        placeholder=${preset?.sample_steps ?? preset?.sigmas?.length ?? model?.default_steps}
        onChange=${(steps) => change({ steps })} />
      <${NumberField} label="Guidance" value=${draft.guidance} rule=${rule("guidance_scale")}
        problem=${problems.guidance}
        placeholder=${preset?.guidance_scale ?? model?.default_guidance_scale} step="0.5"
        onChange=${(guidance) => change({ guidance })} />
      <${NumberField} label="Images each" value=${draft.copies} rule=${{ minimum: 1 }} placeholder="1"
        onChange=${(copies) => change({ copies })} />
    </div>
    ${draft.sigmas && html`
      <${Field} label="Noise levels, instead of steps" problem=${problems.sigmas}
        help="Of the image that fills the form.">
        ${(attributes) => html`
          <input ...${attributes} value=${draft.sigmas}
            onInput=${(event) => change({ sigmas: event.target.value })} />`}
      <//>`}
    <div class="fields-2">
      <${NumberField} label="Seed" value=${draft.seedRule === "random" ? "" : draft.seed} rule=${rule("seed")}
        placeholder=${draft.seedRule === "random" ? "random" : model?.default_seed} problem=${problems.seed}
        onChange=${(seed) => change({ seed, ...(draft.seedRule === "random" ? { seedRule: "each" } : {}) })} />
      <${SelectField} label="Seeds of the images" value=${draft.seedRule} onChange=${(seedRule) => change({ seedRule })}
        options=${[["each", "+1 each"], ["same", "same for all prompts"], ["random", "random"]]} />
    </div>`;
}

export function ModelFields({ draft, change, model, models, problems, schemas }) {
  const ids = choicesOf(schemas, "InferenceRequest", "model");
  const options = models.length ? models.map((each) => [each.id, titleOf(each)]) : ids.map((id) => [id, id]);
  const presets = model?.presets ?? [];
  return html`
    ${options.length > 0 && html`
      <${SelectField} label="Model" value=${draft.model || model?.id} options=${options} problem=${problems.model}
        help=${model && !model.slots ? "No worker serves this model now; jobs wait." : null}
        onChange=${(id) => change({ model: id, preset: "" })} />`}
    ${presets.length > 0 && html`<${Preset} ...${{ draft, change, presets, problem: problems.preset }} />`}`;
}

function Preset({ draft, change, presets, problem }) {
  const { adapter } = presets.find(({ name }) => name === draft.preset) ?? {};
  const isMissing = adapter && !draft.loras.some(({ path }) => path === adapter);
  const add = () => change({ loras: [...draft.loras, { path: adapter, multiplier: "1", ignore: [] }] });
  return html`
    <${SelectField} label="Preset" value=${draft.preset} problem=${problem}
      onChange=${(preset) => change({ preset, sigmas: "" })}
      options=${[["", "None"], ...presets.map(({ name, title }) => [name, title])]}
      help=${isMissing && html`It is made for ${adapter}. <button type="button" class="link"
        onClick=${add}>Add it</button>`} />`;
}

const titleOf = (model) => (model.slots ? model.title : `${model.title} (no worker)`);

// Settings that most jobs leave alone.
export function MoreFields({ draft, change, model, problems, schemas }) {
  const rule = (field) => fieldOf(schemas, "InferenceRequest", field);
  const engines = choicesOf(schemas, "InferenceRequest", "engine");
  const modes = choicesOf(schemas, "InferenceRequest", "adapter_mode");
  const formats = choicesOf(schemas, "InferenceRequest", "output_format");
  const defaultText = (field) => `Default (${rule(field)?.default})`;
  const hasProblem = ["engine", "adapterMode", "format", "priority"].some((field) => problems[field]);
  const isUsed = draft.engine || draft.adapterMode || draft.format || draft.priority;
  return html`
    <details class="more" open=${hasProblem || Boolean(isUsed)}>
      <summary>Engine, file format and priority</summary>
      <div class="fields-2">
        ${engines.length > 0 && html`
          <${SelectField} label="Engine" value=${draft.engine} problem=${problems.engine}
            onChange=${(engine) => change({ engine })}
            options=${[["", defaultText("engine")], ...engines.map((engine) => [engine, engineText(engine, model)])]} />`}
        ${modes.length > 0 && html`
          <${SelectField} label="Adapters are" value=${draft.adapterMode} problem=${problems.adapterMode}
            onChange=${(adapterMode) => change({ adapterMode })}
            options=${[["", "Default (by the worker)"], ...modes.map((mode) => [mode, mode])]} />`}
        ${formats.length > 0 && html`
          <${SelectField} label="File format" value=${draft.format} problem=${problems.format}
            onChange=${(format) => change({ format })}
            options=${[["", defaultText("output_format")], ...formats.map((format) => [format, format])]} />`}
        <${NumberField} label="Priority" value=${draft.priority} placeholder=${rule("priority")?.default}
          rule=${rule("priority")}
          problem=${problems.priority} onChange=${(priority) => change({ priority })} />
      </div>
      <p class="field-help">The lowest priority number is rendered first.</p>
    </details>`;
}

function engineText(engine, model) {
  const slots = model?.engines?.[engine];
  return slots === 0 ? `${engine} (no worker)` : engine;
}
