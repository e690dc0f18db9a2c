// Width and height, with the usual shapes at the model's own number of pixels.
import { fieldOf } from "../../core/schema.js";
import { html } from "../../core/ui.js";
import { NumberField } from "./fields.js";

const SHAPES = [[1, 1], [4, 3], [3, 4], [3, 2], [2, 3], [16, 9], [9, 16]];

// Both sides are multiples of the model's divisor, which the server would round down to.
function sizeOf([across, down], model) {
  const side = Math.sqrt((model.default_width * model.default_height) / (across * down));
  const round = (pixels) => Math.max(1, Math.round(pixels / model.resolution_divisor)) * model.resolution_divisor;
  return { width: round(side * across), height: round(side * down) };
}

export function Size({ draft, change, model, problems, schemas }) {
  const rule = (field) => fieldOf(schemas, "PromptItem", field);
  const now = {
    width: Number(draft.width) || model?.default_width,
    height: Number(draft.height) || model?.default_height,
  };
  return html`
    <div class="size">
      <${NumberField} label="Width" value=${draft.width} placeholder=${model?.default_width} rule=${rule("width")}
        step=${model?.resolution_divisor ?? 1} problem=${problems.width} onChange=${(width) => change({ width })} />
      <button type="button" class="quiet swap" aria-label="Swap width and height" title="Swap width and height"
        onClick=${() => change({ width: String(now.height ?? ""), height: String(now.width ?? "") })}>⇄</button>
      <${NumberField} label="Height" value=${draft.height} placeholder=${model?.default_height} rule=${rule("height")}
        step=${model?.resolution_divisor ?? 1} problem=${problems.height} onChange=${(height) => change({ height })} />
    </div>
    ${model && html`
      <div class="shapes" role="group" aria-label="Shapes">
        ${SHAPES.map((shape) => {
          const { width, height } = sizeOf(shape, model);
          return html`
            <button type="button" key=${shape.join()} class="shape"
              aria-pressed=${now.width === width && now.height === height}
                aria-label="${shape.join(":")}, ${width} x ${height} pixels" title="${width} x ${height}"
                onClick=${() => change({ width: String(width), height: String(height) })}>
              <span class="shape-box" style=${{ aspectRatio: shape.join(" / ") }}></span>${shape.join(":")}
            </button>`;
        })}
      </div>`}`;
}
