// Everything that is known about an image, as a list.
import { adapterName, formatBytes, formatTime } from "../../core/format.js";
import { copyText } from "../../core/parts.js";
import { hrefOf } from "../../core/router.js";
import { html } from "../../core/ui.js";

export function Parameters({ image }) {
  const { pipeline, tokens } = image;
  return html`
    ${image.warnings.map((text) => html`<p class="parameter-warning" key=${text}>${text}</p>`)}
    <dl class="parameters">
      <${Text} name="Prompt" text=${image.prompt ?? "This API cannot read it: another version stored it."} isLong />
      ${image.neg && html`<${Text} name="Negative prompt" text=${image.neg} isLong />`}
      <dt>${image.adapters.length === 1 ? "Adapter" : "Adapters"}</dt>
      <dd>${image.adapters.length ? image.adapters.map((adapter) => html`<${Adapter} key=${adapter.path} ...${adapter} />`) : "None: the base model"}</dd>
      <${Text} name="Seed" text=${image.seed} />
      <${Text} name="Size" text=${sizeText(image)} />
      <${Text} name="Preset" text=${image.preset} />
      <${Text} name="Steps" text=${image.sample_steps} />
      ${image.sigmas && html`<${Text} name="Noise levels" text=${image.sigmas.join(", ")} />`}
      <${Text} name="Guidance" text=${image.guidance_scale} />
      <${Text} name="Model" text=${image.model} />
      <${Text} name="Engine" text=${`${pipeline.engine}, ${pipeline.precision}${image.adapters.length ? `, adapters ${pipeline.adapter_mode}` : ""}`} />
      ${pipeline.decode === "tiled" && html`<${Text} name="Decoding" text="In tiles, because the device was short of memory" />`}
      ${tokens && html`<${Text} name="Prompt length" text=${`${tokens.prompt} of ${tokens.limit} tokens`} />`}
      <dt>Job</dt>
      <dd><a href=${hrefOf("gallery", [], { request_id: image.request_id })}><code>${image.request_id}</code></a>, image ${image.index + 1}</dd>
      <${Text} name="Accepted" text=${formatTime(image.created_at)} />
      <${Text} name="Time" text=${timingText(image.timings)} />
      <${Text} name="Device" text=${pipeline.device} />
      <${Text} name="File" text=${`${image.format.toUpperCase()}, ${formatBytes(image.size_bytes)}`} />
      <${Text} name="SHA-256" text=${image.sha256} isCode />
      <${Text} name="Checkpoint" text=${pipeline.base_revision} isCode />
      <${Text} name="Software" text=${Object.entries(pipeline.versions).map(([name, version]) => `${name} ${version}`).join(", ")} />
    </dl>`;
}

function Text({ name, text, isLong = false, isCode = false }) {
  if (text === null || text === undefined || text === "") return null;
  const shown = isCode ? html`<code>${text}</code>` : text;
  return html`
    <dt>${name}${isLong && html` <button type="button" class="quiet" onClick=${() => copyText(String(text), name)}>Copy</button>`}</dt>
    <dd class=${isLong ? "is-long" : null}>${shown}</dd>`;
}

function Adapter({ path, multiplier, kind, ranks, layers_touched, layers_total, scale_range }) {
  const details = [
    kind, ranks.length && `rank ${ranks.join(", ")}`, scale_range && `scale ${scaleText(scale_range)}`,
    `${layers_touched} of ${layers_total} layers`,
  ];
  return html`
    <div class="parameter-adapter">
      <a href=${hrefOf("gallery", [], { adapter: path })} title=${path}>${adapterName(path)}</a> × ${multiplier}
      <small>${details.filter(Boolean).join(" · ")}</small>
    </div>`;
}

const scaleText = ([low, high]) => (low === high ? round(low) : `${round(low)} to ${round(high)}`);
const round = (number) => Number(number.toPrecision(3));

function sizeText({ width, height, requested_width, requested_height }) {
  const isRounded = requested_width !== null && (requested_width !== width || requested_height !== height);
  return `${width} × ${height}${isRounded ? `, ${requested_width} × ${requested_height} in the request` : ""}`;
}

const STAGES = { encode_prompt: "prompt", adapter: "adapters", denoise: "denoising", decode: "decoding", encode_image: "file", upload: "upload" };

function timingText(timings) {
  const entries = Object.entries(timings);
  if (!entries.length) return "";
  const total = entries.reduce((sum, [, seconds]) => sum + seconds, 0);
  const parts = entries.filter(([, seconds]) => seconds >= 0.05)
    .map(([name, seconds]) => `${STAGES[name] ?? name.replaceAll("_", " ")} ${seconds.toFixed(1)} s`);
  return `${total.toFixed(1)} s${parts.length > 1 ? `: ${parts.join(", ")}` : ""}`;
}
