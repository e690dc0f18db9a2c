import { html } from "../core/ui.js";

export default function Create() {
  return html`<h1>Create</h1>`;
}
