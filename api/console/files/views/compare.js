import { html } from "../core/ui.js";

export default function Compare() {
  return html`<h1>Compare</h1>`;
}
