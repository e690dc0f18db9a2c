// One image of the gallery: a link to the lightbox that can be selected.
import { adapterText, describeImage, keyOf } from "../../core/image.js";
import { usePicture } from "../../pictures/picture.js";
import { html } from "../../core/ui.js";

export const tileId = (key) => `tile-${key}`;

export function Tile({ image, width, height, column, href, isActive, isSelected, renew, onPick }) {
  const name = describeImage(image);
  return html`
    <div role="gridcell" class="gallery-cell ${isSelected ? "is-selected" : ""}" style=${{ width: `${width}px` }}
        aria-colindex=${column + 1} aria-selected=${isSelected}>
      <a id=${tileId(keyOf(image))} class="gallery-tile" href=${href} tabindex=${isActive ? 0 : -1} aria-label=${name} title=${name}
          onClick=${(event) => onPick(event, image)}>
        <${Picture} image=${image} renew=${renew} width=${width} height=${height} />
        <span class="gallery-caption" aria-hidden="true">
          <span class="gallery-adapters">${adapterText(image)}</span><span>${image.seed}</span>
        </span>
      </a>
      <button type="button" class="gallery-check" tabindex="-1" aria-label=${isSelected ? "Deselect" : "Select"}
          onClick=${(event) => onPick(event, image, { isCheck: true })}>
        <svg viewBox="0 0 16 16" aria-hidden="true"><path d="M3.5 8.5l3 3 6-7" /></svg>
      </button>
    </div>`;
}

function Picture({ image, renew, width, height }) {
  const { address, attempt, isGone, onError } = usePicture(image, renew);
  if (isGone) return html`<span class="gallery-gone">This picture does not load. Its file may have been deleted.</span>`;
  if (!address) return null;
  return html`<img key=${attempt} src=${address} alt="" width=${width} height=${height} decoding="async" onError=${onError} />`;
}
