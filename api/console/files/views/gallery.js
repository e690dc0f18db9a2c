import { html } from "../core/ui.js";

export default function Gallery() {
  return html`<h1>Gallery</h1>`;
}
