// What the service draws: jobs that run, what comes next, and the images of today.
import { getJson, withQuery } from "../../core/api.js";
import { adapterName, countOf, formatEta, formatSeconds } from "../../core/format.js";
import { JobTiles, adaptersOf, isUnfinished, promptOf } from "../../core/jobtiles.js";
import { Chip, Problem, announce } from "../../core/parts.js";
import { hrefOf } from "../../core/router.js";
import { connection, fleet, jobs } from "../../core/store.js";
import { Tile } from "../../core/tile.js";
import { html, useEffect, useLoaded, useRef, useValue } from "../../core/ui.js";
import { useCalmList } from "../queue/calm.js";
import { CancelButton } from "../queue/cancel.js";
import { Examples } from "./examples.js";

const MAX_RUNNING = 8;
// Jobs that have ended while the view was open stay where they are until others need the place.
const MAX_ENDED = 3;
const MAX_TODAY = 60;

export function Wall() {
  const all = [...useValue(jobs).values()];
  const state = useValue(connection);
  const current = useCurrentJobs(all);
  const { shown, waiting: hidden, showAll, ref } = useCalmList(current, (job) => job.request_id);
  const today = useToday(all, shown);
  useEndAnnouncements(all);
  if (state === "connecting") return html`<section class="wall" aria-busy="true" aria-label="Images"></section>`;
  if (!all.length && today.data?.length === 0) return html`<section class="wall"><${Examples} /></section>`;
  const running = all.filter((job) => job.status === "in_progress");
  return html`
    <section class="wall" aria-label="Images" ref=${ref}>
      ${shown.length > 0 && html`
        <h2>${running.length ? "Running now" : "Just finished"}
          ${hidden > 0 && html`
            <button type="button" class="pill" onClick=${showAll}>${countOf(hidden, "new job")}</button>`}
        </h2>`}
      ${shown.map((job) => html`<${JobGroup} key=${job.request_id} job=${job} />`)}
      ${running.length > MAX_RUNNING && html`
        <p class="muted"><a href=${hrefOf("queue")}>${countOf(running.length - MAX_RUNNING, "more job")}</a> running</p>`}
      <${NextUp} waiting=${all.filter((job) => job.status === "in_queue")} />
      <${Today} ...${today} hasOthers=${shown.length > 0} />
    </section>`;
}

// Jobs that run, newest first, and the last ones that ended while the view was open. A job keeps its place when it
// ends.
function useCurrentJobs(all) {
  const seen = useRef(new Set());
  for (const job of all) if (job.status === "in_progress") seen.current.add(job.request_id);
  const running = all.filter((job) => job.status === "in_progress").slice(0, MAX_RUNNING);
  const ended = all.filter((job) => !isUnfinished(job) && seen.current.has(job.request_id)).slice(0, MAX_ENDED);
  const shown = new Set([...running, ...ended]);
  return all.filter((job) => shown.has(job));
}

// Screen readers hear of the ends of jobs, not of their steps.
function useEndAnnouncements(all) {
  const unfinished = useRef(new Set());
  useEffect(() => {
    for (const job of all) {
      if (isUnfinished(job)) unfinished.current.add(job.request_id);
      else if (unfinished.current.delete(job.request_id)) announce(endText(job));
    }
  });
}

function endText(job) {
  const { succeeded = 0, failed = 0, canceled = 0 } = job.items;
  const others = [failed && `${failed} failed`, canceled && `${canceled} canceled`].filter(Boolean);
  return `Job finished: ${[countOf(succeeded, "image"), ...others].join(", ")}.`;
}

function JobGroup({ job }) {
  const ended = (job.items.succeeded ?? 0) + (job.items.failed ?? 0) + (job.items.canceled ?? 0);
  const eta = isUnfinished(job) ? formatEta(job.eta_s, job.eta_range_s) : "";
  return html`
    <section class="job-group" aria-label=${promptOf(job)}>
      <header>
        <h3 title=${promptOf(job)}>${promptOf(job)}</h3>
        ${adaptersOf(job).map((path) => html`<${Chip} key=${path} kind="accent">${adapterName(path)}<//>`)}
        <span class="job-progress">${ended} of ${job.images}${eta && ` · ${eta}`}</span>
        ${isUnfinished(job) && html`<${CancelButton} job=${job} />`}
      </header>
      <${JobTiles} job=${job} />
    </section>`;
}

function NextUp({ waiting }) {
  const now = useValue(fleet);
  if (!waiting.length) return null;
  const images = waiting.reduce((sum, job) => sum + (job.items.in_queue ?? job.images), 0);
  const last = waiting.reduce((longest, job) => (job.eta_s > (longest?.eta_s ?? 0) ? job : longest), null);
  const time = last ? formatEta(last.eta_s, last.eta_range_s)
    : now?.seconds_per_image ? `about ${formatSeconds(images * now.seconds_per_image)}` : "";
  return html`
    <p class="next-up">
      <strong>Next up</strong>${" "}
      <a href=${hrefOf("queue")}>${countOf(images, "image")} in ${countOf(waiting.length, "job")}</a>${time && `, ${time}`}
    </p>`;
}

// The images of today without those of the jobs above; read again when a job leaves the place above.
function useToday(all, shown) {
  const above = new Set(shown.map((job) => job.request_id));
  const newestOther = all.find((job) => !isUnfinished(job) && !above.has(job.request_id))?.request_id;
  const loaded = useLoaded(async ({ signal }) => {
    const since = new Date();
    since.setHours(0, 0, 0, 0);
    const page = await getJson(withQuery("/v1/images", { since: since.toISOString(), limit: MAX_TODAY }), { signal });
    return page.data;
  }, [newestOther]);
  return { ...loaded, data: loaded.data?.filter((image) => !above.has(image.request_id)) };
}

function Today({ data, error, hasOthers }) {
  if (error) return html`<${Problem} error=${error} />`;
  if (!data?.length) return null;
  return html`
    <h2>${hasOthers ? "Earlier today" : "Today"} <a class="more-link" href=${hrefOf("gallery")}>All images</a></h2>
    <div class="rows is-small">
      ${data.map((image) => html`
        <${Tile} key=${`${image.request_id}/${image.index}`} state="succeeded"
          width=${image.width} height=${image.height}
          prompt=${image.prompt} seed=${image.seed} adapters=${image.adapters.map((adapter) => adapter.path)}
          image=${image} href=${hrefOf("gallery", [image.request_id, image.index])} />`)}
    </div>`;
}
