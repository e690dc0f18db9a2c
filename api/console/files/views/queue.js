import { html } from "../core/ui.js";

export default function Queue() {
  return html`<h1>Queue</h1>`;
}
