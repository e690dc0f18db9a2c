// Sweeps: a few sets of adapters, seeds and other values, of which each combination is an image; one grid shows them all.
import { caller, getJson, may, request, withQuery } from "../../core/api.js";
import { countOf, formatSeconds, formatTime } from "../../core/format.js";
import { announce, Confirmation } from "../../core/parts.js";
import { hrefOf } from "../../core/router.js";
import { html, useLoaded, useState, useValue } from "../../core/ui.js";

// More cells than anybody looks through; their pictures would fill the memory of a phone.
const MAX_IMAGES = 1000;
const PAGE = 200;
const MAX_SWEEPS = 12;

const pathOf = (id, part) => `/v1/sweeps/${encodeURIComponent(id)}/${part}`;

export const isEnded = ({ status }) => status !== "queued" && status !== "running";

// Return { status, images } of a sweep: its state, and its finished images in the form of the listing, with their labels.
export async function readSweep(id, { signal } = {}) {
  const status = await getJson(pathOf(id, "status"), { signal });
  const images = [];
  let cursor = null;
  do {
    const page = await getJson(withQuery(pathOf(id, "result"), { limit: PAGE, cursor }), { signal });
    images.push(...page.cells.filter(({ image }) => image).map((cell) => imageOf(cell, status)));
    cursor = page.next_cursor;
  } while (cursor && images.length < MAX_IMAGES);
  return { status, images: images.slice(0, MAX_IMAGES) };
}

const imageOf = ({ image, request_id, index, checkpoint, multiplier }, { model, created_at, finished_at }) =>
  ({ ...image, request_id, index, model, created_at, finished_at, checkpoint, multiplier });

// What a sweep that is shown has rendered so far, and how to stop it.
export function SweepBar({ sweep, shown, onReload }) {
  const [isAsking, setAsking] = useState(false);
  const { counts, images, eta_s } = sweep;
  const isRunning = !isEnded(sweep);
  const cancel = async () => {
    await request(pathOf(sweep.sweep_id, "cancel"), { method: "POST" });
    setAsking(false);
    announce("The sweep is canceled. Images that are being drawn stop at their next step.");
    onReload();
  };
  return html`
    <div class="compare-sweep">
      <progress class="bar" max=${images} value=${counts.succeeded} aria-label="Images of the sweep that are finished"></progress>
      <span role="status">${[
        `Sweep ${sweep.sweep_id.slice(0, 8)}: ${counts.succeeded} of ${countOf(images, "image")}`,
        counts.failed && `${counts.failed} failed`,
        counts.canceled && `${counts.canceled} canceled`,
        isRunning && eta_s !== null && `about ${formatSeconds(eta_s)} left`,
        shown < counts.succeeded && isEnded(sweep) && `the first ${shown} are shown`,
      ].filter(Boolean).join(" · ")}</span>
      ${isRunning && html`
        <button type="button" onClick=${onReload}>Show what is finished</button>
        ${may("submit") && html`<button type="button" class="danger" onClick=${() => setAsking(true)}>Cancel the sweep</button>`}`}
      ${isAsking && html`
        <${Confirmation} title="Cancel the sweep?" action="Cancel the sweep" onConfirm=${cancel} onClose=${() => setAsking(false)}>
          ${countOf(counts.queued + counts.running, "image")} will not be rendered. Finished images stay.
        <//>`}
    </div>`;
}

// The newest sweeps, each of which leads to its grid; nothing without any.
export function RecentSweeps() {
  const who = useValue(caller);
  const { data } = useLoaded(({ signal }) => getJson(withQuery("/v1/sweeps", { limit: MAX_SWEEPS }), { signal }), [who?.tenant]);
  if (!data?.data.length) return null;
  return html`
    <section class="compare-jobs">
      <h2>Recent sweeps</h2>
      <ul>
        ${data.data.map((sweep) => html`
          <li key=${sweep.sweep_id}>
            <a class="compare-job" href=${hrefOf("compare", [], { sweep: sweep.sweep_id })}>
              <span class="compare-job-text">
                <span class="compare-job-prompt">Sweep ${sweep.sweep_id.slice(0, 8)}: ${countOf(sweep.images, "image")}</span>
                <small>${formatTime(sweep.created_at)} · ${sweep.model} · ${sweep.counts.succeeded} finished · ${sweep.status}</small>
              </span>
            </a>
          </li>`)}
      </ul>
    </section>`;
}
