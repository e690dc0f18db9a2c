// All finished images, newest first, with a lightbox. Filters and the open image are in the address.
import { countOf } from "../core/format.js";
import { keyOf } from "../core/image.js";
import { Empty, Problem } from "../core/parts.js";
import { go, hrefOf, route } from "../core/router.js";
import { connection } from "../core/store.js";
import { html, useCallback, useEffect, useLayoutEffect, useMemo, useRef, useState, useValue } from "../core/ui.js";
import { feedOf } from "./gallery/feed.js";
import { Filters, clearFilters, isFiltered, parametersOf } from "./gallery/filters.js";
import { Grid } from "./gallery/grid.js";
import { Lightbox } from "./gallery/lightbox.js";
import { SelectionBar } from "./gallery/selectionbar.js";

// At the top new images appear at once; further down they wait for a click.
const TOP_PX = 100;
const ID = /^[\w.-]+$/;

export default function Gallery() {
  const { rest: [requestId, index], query } = useValue(route);
  const filters = parametersOf(query);
  const name = JSON.stringify(filters);
  const feed = useMemo(() => feedOf(filters), [name]);
  const images = useValue(feed.images);
  const state = useValue(feed.state);
  const open = !ID.test(requestId ?? "") ? null : { request_id: requestId, index: Number(index ?? 0) };
  const adapters = useMemo(() => [...new Set(images.flatMap((image) => image.adapters.map((each) => each.path)))].sort(), [images]);
  const queryText = query.toString();
  const hrefFor = useCallback(
    (image) => hrefOf("gallery", [image.request_id, image.index], Object.fromEntries(new URLSearchParams(queryText))), [queryText]);
  const renew = useCallback((image) => feed.renew(image), [feed]);
  useFeed(feed, Boolean(open));
  const lastOpen = useLastOpen(open);
  return html`
    <h1 class="visually-hidden">Gallery</h1>
    <${Filters} query=${query} adapters=${adapters} />
    <${NewImages} feed=${feed} />
    <${Grid} images=${images} hrefFor=${hrefFor} renew=${renew} onEnd=${() => !state.error && feed.readMore()}
      focusKey=${open ? null : lastOpen} />
    <${End} state=${state} images=${images} query=${query} onRetry=${() => feed.readMore()} />
    <${SelectionBar} />
    ${open && html`
      <${Lightbox} key="lightbox" open=${open} feed=${feed} images=${images}
        onMove=${(image) => go("gallery", [image.request_id, image.index], Object.fromEntries(query), { replace: true })}
        onClose=${() => go("gallery", [], Object.fromEntries(query))} />`}`;
}

// Follow the running jobs while the view is shown, and find the place again where it was left.
function useFeed(feed, isCovered) {
  const covered = useRef(isCovered);
  covered.current = isCovered;
  useLayoutEffect(() => {
    const look = () => {
      feed.isHeld = covered.current || scrollY > TOP_PX;
      feed.scrollY = scrollY;
    };
    const frame = requestAnimationFrame(() => { if (feed.scrollY) scrollTo({ top: feed.scrollY, behavior: "instant" }); look(); });
    addEventListener("scroll", look, { passive: true });
    feed.enter();
    return () => { cancelAnimationFrame(frame); removeEventListener("scroll", look); feed.leave(); };
  }, [feed]);
  useEffect(() => { feed.isHeld = isCovered || scrollY > TOP_PX; }, [feed, isCovered]);
}

// The key of the image that the lightbox showed last, so that the focus goes there.
function useLastOpen(open) {
  const last = useRef(null);
  if (open) last.current = keyOf(open);
  return last.current;
}

function NewImages({ feed }) {
  const waiting = useValue(feed.waiting);
  if (!waiting.length) return null;
  const show = () => {
    feed.showWaiting();
    scrollTo({ top: 0, behavior: "smooth" });
  };
  return html`
    <div class="gallery-new">
      <button type="button" class="primary" onClick=${show}>${countOf(waiting.length, "new image")}</button>
    </div>`;
}

function End({ state, images, query, onRetry }) {
  const live = useValue(connection);
  if (state.error) return html`<${Problem} error=${state.error} onRetry=${onRetry} />`;
  if (state.isLoading || state.hasMore) return html`<${Skeleton} isFirst=${!images.length} isFiltered=${isFiltered(query)} />`;
  if (!images.length && isFiltered(query)) {
    return html`
      <${Empty} title="No image matches">
        <p>Use fewer words, or a longer time.</p>
        <button type="button" onClick=${clearFilters}>Clear filters</button>
      <//>`;
  }
  if (!images.length) {
    return html`
      <${Empty} title="No images yet">
        <p>Each image appears here as soon as it is rendered.</p>
        <a href=${hrefOf("create")}>Create the first image</a>
        ${live === "reconnecting" && html`<p>Reconnecting. Nothing is lost.</p>`}
      <//>`;
  }
  return html`<p class="gallery-end">${countOf(images.length, "image")}${isFiltered(query) ? " match" : ""}</p>`;
}

// Shapes of rows to come.
const ASPECTS = [1, 1.5, 0.75, 1, 1.33, 0.8, 1, 1.5, 1, 0.67, 1.2, 1];

function Skeleton({ isFirst, isFiltered: searches }) {
  const [isLong, setLong] = useState(false);
  useEffect(() => {
    const timer = setTimeout(setLong, 1500, true);
    return () => clearTimeout(timer);
  }, []);
  return html`
    <div class="gallery-skeleton" role="status" aria-label="Loading images">
      ${searches && isLong && html`<p>Looking through older images.</p>`}
      ${ASPECTS.slice(0, isFirst ? 12 : 6).map((aspect, index) => html`
        <span key=${index} style=${{ aspectRatio: String(aspect), flexGrow: String(aspect) }}></span>`)}
    </div>`;
}
