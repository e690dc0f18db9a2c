// How many layers of each type of block an adapter updates, as a strip whose parts are as wide as their shares.
import { countOf } from "../../core/format.js";
import { html } from "../../core/ui.js";

const NAMES = { double: "double blocks", single: "single blocks", other: "other layers" };

export function BlockStrip({ report }) {
  const parts = Object.entries(report.blocks).filter(([, part]) => part.layers);
  if (!parts.length) return null;
  return html`
    <figure class="blocks">
      <div class="blocks-strip" aria-hidden="true">
        ${parts.map(([name, part]) => html`
          <span key=${name} class="block-part is-${name} ${lacks(part) ? "is-unmatched" : ""}" style=${{ flexGrow: part.layers }}></span>`)}
      </div>
      <figcaption>
        ${parts.map(([name, part]) => html`
          <span key=${name} class="block-name"><i class="block-part is-${name}" aria-hidden="true"></i>${textOf(name, part)}</span>`)}
        ${report.matched === null && html`<span class="field-help">No worker has loaded the model, so its layers are not compared.</span>`}
      </figcaption>
    </figure>`;
}

const lacks = (part) => part.matched !== null && part.matched < part.layers;

function textOf(name, part) {
  const kind = NAMES[name] ?? name;
  return lacks(part) ? `${part.matched} of ${countOf(part.layers, "layer")} in ${kind}` : `${countOf(part.layers, "layer")} in ${kind}`;
}
