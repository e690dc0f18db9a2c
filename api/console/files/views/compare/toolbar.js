// How the grid is laid out, and what it shows.
import { setQuery } from "../../core/router.js";
import { html, useId } from "../../core/ui.js";
import { DIMENSIONS, labelOf, valuesOf } from "./dimensions.js";
import { KEYS } from "./keys.js";

// What each image is compared with when the difference is shown, by the parameter `against`.
export const AGAINST = { cell: "The reference", row: "The reference's row", column: "The reference's column" };

export function Toolbar({ images, axes, query, names, zoom, scale, against, showsDifference, onDifference }) {
  const others = names.filter((name) => name !== axes.rows && name !== axes.columns);
  return html`
    <div class="compare-toolbar">
      <${Axis} name="rows" label="Rows" value=${axes.rows} other=${axes.columns} names=${names} />
      <button type="button" class="compare-swap" aria-label="Swap rows and columns" title="Swap rows and columns"
        onClick=${() => setQuery({ rows: axes.columns ?? "none", columns: axes.rows ?? "none" })}>⇄</button>
      <${Axis} name="columns" label="Columns" value=${axes.columns} other=${axes.rows} names=${names} />
      ${others.map((name) => html`<${Held} key=${name} name=${name} images=${images} query=${query} />`)}
      <${Choice} label="Difference from" value=${against} onChange=${(value) => setQuery({ against: value })}
        options=${Object.entries(AGAINST).filter(([name]) => name === "cell" || (axes.rows && axes.columns))} />
      <span class="compare-view" role="group" aria-label="Picture">
        <button type="button" aria-label="Zoom out" title="Zoom out (−)" onClick=${() => zoom.zoomOut()}>−</button>
        <button type="button" title="Whole picture (0)" onClick=${() => zoom.reset()}>${Math.round(scale * 100)} %</button>
        <button type="button" aria-label="Zoom in" title="Zoom in (+)" onClick=${() => zoom.zoomIn()}>+</button>
        <button type="button" aria-pressed=${showsDifference} title="Show what differs from the reference (hold D)" onClick=${onDifference}>Difference</button>
      </span>
      <details class="compare-help">
        <summary>Keys</summary>
        <dl>${KEYS.map(([key, text]) => html`<dt key=${key}><kbd>${key}</kbd></dt><dd>${text}</dd>`)}
          <dt>Wheel</dt><dd>zooms on the chosen image; drag moves all of them</dd></dl>
      </details>
    </div>`;
}

// `options` are pairs of a value and its text.
function Choice({ label, value, options, onChange }) {
  const id = useId();
  return html`
    <div class="compare-axis">
      <label for=${id}>${label}</label>
      <select id=${id} value=${value} onChange=${(event) => onChange(event.target.value)}>
        ${options.map(([each, text]) => html`<option key=${each} value=${each} title=${text}>${text}</option>`)}
      </select>
    </div>`;
}

function Axis({ name, label, value, other, names }) {
  const offered = [...new Set([...names, ...(value ? [value] : []), "request"])];
  const change = (chosen) => {
    const otherName = name === "rows" ? "columns" : "rows";
    // The other axis moves out of the way.
    setQuery({ [name]: chosen, [otherName]: chosen === other ? value ?? "none" : other ?? "none" });
  };
  return html`
    <${Choice} label=${label} value=${value ?? "none"} onChange=${change}
      options=${[["none", "None"], ...offered.map((each) => [each, DIMENSIONS[each].name])]} />`;
}

// A dimension that is neither rows nor columns: all of its images share cells, or one value is held.
function Held({ name, images, query }) {
  const parameter = `only-${name}`;
  const values = valuesOf(images, name);
  return html`
    <${Choice} label=${DIMENSIONS[name].name} value=${query.get(parameter) ?? ""}
      onChange=${(value) => setQuery({ [parameter]: value || null })}
      options=${[["", `All ${values.length}`], ...values.filter(Boolean).map((value) => [value, labelOf(name, value)])]} />`;
}
