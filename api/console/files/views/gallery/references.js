// The reference images of an image, next to it.
import { html, useState } from "../../core/ui.js";

export function References({ image }) {
  if (!image.references.length) return null;
  return html`
    <div class="lightbox-references" role="group" aria-label="Reference images">
      ${image.references.map((reference) => html`<${Reference} key=${`${reference.slot} ${reference.sha256}`} ...${reference} />`)}
    </div>`;
}

function Reference({ slot, sha256, url, width, height }) {
  const [isGone, setGone] = useState(!url);
  const name = `Reference ${slot}`;
  return html`
    <figure title=${`upload:${sha256}`}>
      ${isGone
        ? html`<p style=${{ aspectRatio: `${width} / ${height}` }}>Its file cannot be shown.</p>`
        : html`<img src=${url} alt=${name} style=${{ aspectRatio: `${width} / ${height}` }} onError=${() => setGone(true)} />`}
      <figcaption>${name}, used at ${width} × ${height}</figcaption>
    </figure>`;
}
