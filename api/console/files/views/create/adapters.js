// The adapters of the next job, each with its multiplier and what the server says about its file.
import { getJson, withQuery } from "../../core/api.js";
import { adapterName, countOf } from "../../core/format.js";
import { fieldOf, schemas } from "../../core/schema.js";
import { html, useId, useLoaded, useState, useValue } from "../../core/ui.js";
import { AdapterPicker } from "./picker.js";

export function Adapters({ draft, change, model, problems }) {
  const [isPicking, setPicking] = useState(false);
  // Of what the form holds by then: the report of a file may arrive after other changes.
  const replace = (index, changes) => change(({ loras }) => ({
    loras: loras.map((lora, each) => (each === index ? { ...lora, ...changes } : lora)),
  }));
  const remove = (index) => change({ loras: draft.loras.filter((_, each) => each !== index) });
  const add = (path) => {
    setPicking(false);
    change({ loras: [...draft.loras, { path, multiplier: "1", ignore: [] }] });
  };
  return html`
    <fieldset class="adapters">
      <legend>Adapters</legend>
      <ul>
        ${draft.loras.map((lora, index) => html`
          <${AdapterRow} key=${`${lora.path} ${index}`} lora=${lora} model=${model}
            problem=${problems[`loras.${index}`]}
            onChange=${(changes) => replace(index, changes)} onRemove=${() => remove(index)}
            onTrigger=${draft.trigger ? null : (trigger) => change({ trigger })} />`)}
      </ul>
      ${problems.loras && html`<p class="field-error">${problems.loras}</p>`}
      <button type="button" onClick=${() => setPicking(true)}>Add an adapter</button>
      ${isPicking && html`<${AdapterPicker} onPick=${add} onClose=${() => setPicking(false)} />`}
    </fieldset>`;
}

function AdapterRow({ lora, model, problem, onChange, onRemove, onTrigger }) {
  const id = useId();
  const rule = fieldOf(useValue(schemas), "LoraItem", "network_multiplier");
  const name = adapterName(lora.path);
  const set = (event) => onChange({ multiplier: event.target.value });
  return html`
    <li class="adapter-row" aria-label=${name}>
      <div class="adapter-name">
        <span title=${lora.path}>${name}</span>
        <button type="button" class="quiet" aria-label="Remove ${name}" onClick=${onRemove}>✕</button>
      </div>
      <div class="adapter-strength">
        ${rule && html`
          <input type="range" min=${rule.minimum} max=${rule.maximum} step="0.05" value=${lora.multiplier}
            aria-label="Multiplier of ${name}" onInput=${set} />`}
        <input type="number" min=${rule?.minimum} max=${rule?.maximum} step="0.05" value=${lora.multiplier}
          placeholder="1"
          aria-label="Multiplier of ${name}, as a number" aria-invalid=${problem ? "true" : null}
          aria-describedby=${problem ? id : null} onInput=${set} />
      </div>
      ${problem ? html`<p class="field-error" id=${id}>${problem}</p>`
        : html`<${AdapterSummary} path=${lora.path} model=${model} ignore=${lora.ignore} onTrigger=${onTrigger}
            onIgnore=${(ignore) => onChange({ ignore })} />`}
    </li>`;
}

// The inspect report in a line: what the file is, or why jobs with it are refused.
function AdapterSummary({ path, model, ignore, onIgnore, onTrigger }) {
  const { data, error, isLoading } = useLoaded(async ({ signal }) => {
    const report = await getJson(withQuery("/v1/adapters", { path, model }), { signal });
    // The file is refused unless a job names these parts, and nothing here could use them.
    if (report.must_ignore.length && !ignore?.length) onIgnore(report.must_ignore);
    return report;
  }, [path, model]);
  if (error) return html`<p class="field-error">${error.message}</p>`;
  if (isLoading || !data) return html`<p class="field-help">Reading the file's header.</p>`;
  if (data.refused && !data.must_ignore.length) return html`<p class="field-error">${data.refused}</p>`;
  return html`
    <p class="field-help">
      ${factsOf(data).join(" · ")}
      ${data.trigger && onTrigger && html` <button type="button" class="link" onClick=${() => onTrigger(data.trigger)}>
        Use its trigger word "${data.trigger}"</button>`}
    </p>
    ${ignore?.length > 0 && html`<p
      class="field-help">Its ${ignore.join(", ").replaceAll("_", " ")} part is left out.</p>`}
    ${data.warnings.map((warning) => html`<p class="field-warning" key=${warning}>${warning}</p>`)}`;
}

function factsOf(report) {
  const ranks = report.ranks.length ? `rank ${report.ranks.join(", ")}` : "";
  const layers = report.matched === null || report.matched === report.layers
    ? countOf(report.layers, "layer") : `${report.matched} of ${countOf(report.layers, "layer")}`;
  const step = report.step === null ? "" : `step ${report.step.toLocaleString()}`;
  return [report.kind, ranks, layers, step, report.trainer].filter(Boolean);
}
