import { html } from "../core/ui.js";

export default function Keys() {
  return html`<h1>Keys</h1>`;
}
