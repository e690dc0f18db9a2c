import { html } from "../core/ui.js";

export default function Adapters() {
  return html`<h1>Adapters</h1>`;
}
