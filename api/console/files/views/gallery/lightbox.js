// One image as large as the window allows, with everything that is known about it.
import { countOf, formatTime } from "../../core/format.js";
import { describeImage, keyOf, pictureOf, readImages, rereadImages } from "../../core/image.js";
import { Dialog, Empty, Problem, useKeys } from "../../core/parts.js";
import { usePicture } from "../../pictures/picture.js";
import { html, signal, useEffect, useLoaded, useRef, useState, useValue } from "../../core/ui.js";
import { useZoom } from "../../pictures/zoom.js";
import { Actions } from "./actions.js";
import { Parameters } from "./parameters.js";
import { References } from "./references.js";
import { selection, toggle } from "./selection.js";

// Stays as the reader left it while images change.
const showsParameters = signal(true);

// `open` is { request_id, index }; it need not be among `images`, for links lead to any image.
export function Lightbox({ open, feed, images, onMove, onClose }) {
  const isListed = images.some((image) => keyOf(image) === keyOf(open));
  const alone = useLoaded(
    ({ signal: abort }) => (isListed ? Promise.resolve(null) : readImages(open.request_id, { signal: abort })),
    [isListed, isListed ? "" : open.request_id]);
  const [renewed, setRenewed] = useState(null);
  // Both may be of the job that was open before.
  const ofJob = (read) => (read?.[0]?.request_id === open.request_id ? read : null);
  const all = isListed ? images : ofJob(renewed) ?? ofJob(alone.data) ?? [];
  const place = all.findIndex((image) => keyOf(image) === keyOf(open));
  const image = all[place];
  const move = (step) => { if (all[place + step]) onMove(all[place + step]); };
  const renew = (stale) => (isListed ? feed.renew(stale) : rereadImages(open.request_id).then(setRenewed, () => {}));
  useKeys({
    arrowleft: () => move(-1),
    arrowright: () => move(1),
    i: () => { showsParameters.value = !showsParameters.value; },
    " ": (event) => (image && !event.target.closest("button, a") ? toggle(image) : false),
  });
  useEffect(() => { if (isListed && place > images.length - 4) feed.readMore(); }, [place, images.length]);
  usePreload([all[place + 1], all[place - 1]]);
  return html`
    <${Dialog} title=${image ? `${formatTime(image.created_at)}${image.seed === null ? "" : ` · seed ${image.seed}`}` : "Image"}
        kind="lightbox" onClose=${onClose}>
      ${image
        ? html`<${Shown} key="shown" image=${image} renew=${renew} place=${place} all=${all} hasMore=${isListed && feed.state.value.hasMore} onMove=${move} />`
        : html`<${Absent} alone=${alone} />`}
    <//>`;
}

function Shown({ image, renew, place, all, hasMore, onMove }) {
  const withParameters = useValue(showsParameters);
  const isSelected = useValue(selection).has(keyOf(image));
  return html`
    <div class="lightbox-body ${withParameters ? "" : "is-alone"}">
      <div class="lightbox-stage">
        <${References} image=${image} />
        <${Picture} key=${keyOf(image)} image=${image} renew=${renew} />
        <button type="button" class="lightbox-step is-before" aria-label="Previous image" disabled=${!place} onClick=${() => onMove(-1)}>‹</button>
        <button type="button" class="lightbox-step is-after" aria-label="Next image" disabled=${place === all.length - 1} onClick=${() => onMove(1)}>›</button>
        <p class="lightbox-place">
          <span aria-live="polite">${place + 1} of ${hasMore ? `more than ${all.length}` : all.length}</span>
          <button type="button" class="quiet" aria-pressed=${isSelected} onClick=${() => toggle(image)}>${isSelected ? "Selected" : "Select"}</button>
          <button type="button" class="quiet" aria-pressed=${withParameters} title="Show or hide the parameters (i)" onClick=${() => { showsParameters.value = !withParameters; }}>Parameters</button>
        </p>
      </div>
      ${withParameters && html`
        <aside class="lightbox-side" aria-label="Parameters" tabindex="0">
          <${Actions} image=${image} />
          <${Parameters} image=${image} />
        </aside>`}
    </div>`;
}

function Picture({ image, renew }) {
  const stage = useRef(null);
  const { address, attempt, isGone, onError, retry } = usePicture(image, renew, { isWhole: true });
  const [isLoaded, setLoaded] = useState(false);
  const zoom = useZoom(stage, { target: ".lightbox-frame" });
  useKeys({ "+": () => zoom.zoomIn(), "=": () => zoom.zoomIn(), "-": () => zoom.zoomOut(), 0: () => zoom.reset() });
  const shape = { "--aspect": image.width / image.height };
  return html`
    <div ref=${stage} class="lightbox-picture">
      <div class="lightbox-frame" style=${shape} onDblClick=${() => (zoom.scale > 1 ? zoom.reset() : zoom.zoomIn())}>
        ${isGone
          ? html`<div class="lightbox-gone">
              <p>This picture does not load. Its file may have been deleted from the object store; its parameters are kept.</p>
              <button type="button" onClick=${retry}>Try again</button>
            </div>`
          : html`
            ${image.thumbnail_url && !isLoaded && html`<img class="zoomed" src=${pictureOf(image)} alt="" />`}
            ${address && html`<img key=${attempt} class="zoomed" src=${address} alt=${describeImage(image)} width=${image.width} height=${image.height}
              onLoad=${() => setLoaded(true)} onError=${onError} />`}`}
      </div>
    </div>`;
}

function Absent({ alone }) {
  if (alone.isLoading) return html`<div class="lightbox-body"><div class="lightbox-loading" role="status" aria-label="Loading the image"></div></div>`;
  if (alone.error) return html`<div class="lightbox-absent"><${Problem} error=${alone.error} onRetry=${alone.reload} /></div>`;
  return html`
    <div class="lightbox-absent">
      <${Empty} title="This image is not there">
        <p>It is not rendered yet, or it failed. Its job has ${countOf(alone.data.length, "finished image")}.</p>
        <button type="button" onClick=${alone.reload}>Look again</button>
      <//>
    </div>`;
}

// The browser loads the neighbours, so that the next step shows them at once.
function usePreload(images) {
  const addresses = images.filter(Boolean).map((image) => image.url);
  useEffect(() => { for (const address of addresses) new Image().src = address; }, addresses);
}
