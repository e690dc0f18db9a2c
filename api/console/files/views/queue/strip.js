// The first pictures of a job in a row, and the one that is being drawn.
import { getJson, withQuery } from "../../core/api.js";
import { isExpired } from "../../core/image.js";
import { previews } from "../../core/store.js";
import { html, useEffect, useRef, useState, useValue } from "../../core/ui.js";

const CELLS = 5;
// Pictures of jobs that were read before, so that a row that comes back needs no call.
const known = new Map();
const MAX_KNOWN = 300;

// A row reads its pictures when it is on the screen, once for each one that is new.
function usePictures(job, ref) {
  const [pictures, setPictures] = useState(() => (known.get(job.request_id) ?? []).filter((image) => !isExpired(image)));
  const [isVisible, setVisible] = useState(false);
  const wanted = Math.min(job.items.succeeded ?? 0, CELLS);
  useEffect(() => {
    const observer = new IntersectionObserver(([entry]) => setVisible(entry.isIntersecting), { rootMargin: "200px" });
    observer.observe(ref.current);
    return () => observer.disconnect();
  }, []);
  useEffect(() => {
    if (!isVisible || pictures.length >= wanted) return;
    const aborter = new AbortController();
    const path = withQuery("/v1/images", { request_id: job.request_id, limit: CELLS });
    getJson(path, { signal: aborter.signal }).then(({ data }) => {
      known.set(job.request_id, data);
      if (known.size > MAX_KNOWN) known.delete(known.keys().next().value);
      setPictures(data);
    }, () => {});
    return () => aborter.abort();
  }, [isVisible, wanted]);
  return pictures;
}

export function Filmstrip({ job }) {
  const ref = useRef(null);
  const pictures = usePictures(job, ref);
  const shown = useValue(previews);
  const drawn = job.running.map((item) => shown.get(`${job.request_id}/${item.index}`)?.image).filter(Boolean);
  const sources = [
    ...pictures.slice(0, CELLS - Math.min(drawn.length, 1)).map((image) => image.thumbnail_url ?? image.url),
    ...drawn,
  ].slice(0, CELLS);
  const cells = Math.min(CELLS, Math.max(job.images, 1));
  return html`
    <span class="strip" ref=${ref} aria-hidden="true">
      ${Array.from({ length: cells }, (_, cell) => html`
        <span key=${cell} class="strip-cell">${sources[cell] && html`<img src=${sources[cell]} alt=""
          loading="lazy" />`}</span>`)}
    </span>`;
}
