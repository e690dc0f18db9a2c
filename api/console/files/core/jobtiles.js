// The images of one job as tiles, each in its place from the start.
import { ApiError, getJson } from "./api.js";
import { countOf } from "./format.js";
import { useOutcomes } from "./outcomes.js";
import { announce } from "./parts.js";
import { hrefOf } from "./router.js";
import { repeatedBody, seedOf, sentBody, submitRequest } from "./sent.js";
import { loadModels } from "./models.js";
import { previews } from "./store.js";
import { Tile } from "./tile.js";
import { html, useMemo, useRef, useState, useValue } from "./ui.js";

export const isUnfinished = (job) => job.status === "in_queue" || job.status === "in_progress";
export const adaptersOf = (job) => (!job.adapters || job.adapters === "base" ? [] : job.adapters.split(" + "));

// The stream has no prompt for a job that was canceled before it began; this browser may know it.
export const promptOf = (job) => job.prompt ?? sentBody(job.request_id)?.prompts[0]?.prompt ?? "Its prompt is not kept";

// The stream has the first prompt alone.
const knownPrompt = (job, index) => (index ? `Image ${index + 1}` : promptOf(job));

// Render images of a job again, as a new job; `findIndexes` resolves to theirs.
async function retryImages(body, findIndexes) {
  try {
    const indexes = await findIndexes();
    await loadModels();
    await submitRequest(repeatedBody(body, indexes));
    announce(`${countOf(indexes.length, "image")} will be rendered again.`);
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    announce(error.message, { kind: "error" });
  }
}

// Render all images of an ended job again that failed or were canceled.
export const retryMissingImages = (job, body) => retryImages(body, async () => {
  const { items } = await getJson(`/v1/requests/${job.request_id}/status`);
  return items.filter((item) => item.status !== "succeeded").map((item) => item.index);
});

// Arguments: `limit` tiles are shown at a time. A larger job shows the page of its first running image, so that tiles
// stay in place until all images of their page have ended.
export function JobTiles({ job, limit = 24, isSmall = false }) {
  const { outcomes, isComplete, reload } = useOutcomes(job);
  const shownPreviews = useValue(previews);
  const started = useRef(new Set());
  const body = useMemo(() => sentBody(job.request_id), [job.request_id]);
  const [page, setPage] = useState(null);
  const running = new Map(job.running.map((item) => [item.index, item]));
  for (const index of running.keys()) started.current.add(index);
  const { width, height } = shapeOf(job, body);
  const pages = Math.ceil(job.images / limit);
  const followed = useRef(0);
  if (job.running.length) followed.current = Math.floor(Math.min(...running.keys()) / limit);
  const current = page ?? followed.current;
  const indexes = Array.from({ length: job.images }, (_, index) => index).slice(current * limit, (current + 1) * limit);
  return html`
    <div class="rows ${isSmall ? "is-small" : ""}">
      ${indexes.map((index) => {
        const outcome = outcomes.get(index);
        const parameters = body?.prompts[index];
        const isRunning = running.has(index);
        const state = stateOf({ job, outcome, isRunning, isComplete, hasStarted: started.current.has(index) });
        return html`
          <${Tile} key=${index} state=${state} width=${width} height=${height}
            prompt=${outcome?.image?.prompt ?? parameters?.prompt ?? knownPrompt(job, index)}
            seed=${parameters && seedOf(body, index)}
            adapters=${adaptersOf(job)} running=${running.get(index)}
            preview=${shownPreviews.get(`${job.request_id}/${index}`)?.image} image=${outcome?.image}
            error=${outcome?.error}
            href=${hrefOf("gallery", [job.request_id, index])} onStale=${reload}
            onRetry=${body && (() => retryImages(body, async () => [index]))} />`;
      })}
    </div>
    ${pages > 1 && html`<${Pages} current=${current} pages=${pages} limit=${limit} images=${job.images}
      onPage=${setPage} />`}`;
}

// A square for a job that shows no size.
function shapeOf(job, body) {
  const { width = 1, height = 1 } = body?.prompts[0] ?? {};
  return { width: job.width ?? width, height: job.height ?? height };
}

function stateOf({ job, outcome, isRunning, isComplete, hasStarted }) {
  if (outcome) return outcome.image ? "succeeded" : "failed";
  if (isRunning) return "running";
  if (!isUnfinished(job)) return isComplete ? "canceled" : "loading";
  return hasStarted && !isComplete ? "finishing" : "queued";
}

function Pages({ current, pages, limit, images, onPage }) {
  const first = current * limit + 1;
  const last = Math.min(images, first + limit - 1);
  return html`
    <p class="pages">
      <button type="button" class="quiet" disabled=${current === 0}
        onClick=${() => onPage(current - 1)}>Previous</button>
      Images ${first} to ${last} of ${images}
      <button type="button" class="quiet" disabled=${current === pages - 1}
        onClick=${() => onPage(current + 1)}>Next</button>
    </p>`;
}
