// One job of the queue, in one row that opens to its images.
import { adapterName, countOf, formatEta, formatTime } from "../../core/format.js";
import { adaptersOf, isUnfinished, promptOf, retryMissingImages } from "../../core/jobtiles.js";
import { caller, may } from "../../core/api.js";
import { Chip, ProgressBar } from "../../core/parts.js";
import { sentBody } from "../../core/sent.js";
import { html, useMemo, useState } from "../../core/ui.js";
import { CancelButton } from "./cancel.js";
import { Items } from "./items.js";
import { Filmstrip } from "./strip.js";

const STATES = {
  in_queue: "Waiting", in_progress: "Running", succeeded: "Done", failed: "Failed", canceled: "Canceled",
};

export function JobRow({ job }) {
  const [isOpen, setOpen] = useState(false);
  const isCanceling = job.cancel_requested && isUnfinished(job);
  const percent = Math.round(job.progress * 100);
  return html`
    <li class="job is-${job.status}">
      <div class="job-row">
        <button type="button" class="job-main" aria-expanded=${isOpen} onClick=${() => setOpen(!isOpen)}>
          <${Filmstrip} job=${job} />
          <span class="job-text">
            <span class="job-prompt">${promptOf(job)}</span>
            <span class="job-meta">
              ${adaptersOf(job).map((path) => html`<${Chip} key=${path} kind="accent">${adapterName(path)}<//>`)}
              <span>${countsText(job)}</span>
              <span>${formatTime(job.created_at)}</span>
              ${job.priority !== 5 && html`<span>priority ${job.priority}</span>`}
              ${job.tenant !== caller.value.tenant && html`<${Chip}>${job.tenant}<//>`}
            </span>
          </span>
        </button>
        <div class="job-state">
          <span class="job-status">${isCanceling ? "Canceling" : STATES[job.status]}</span>
          <span class="job-eta" title=${etaText(job)}>${etaText(job)}</span>
          ${isUnfinished(job) && html`<${ProgressBar} value=${percent} max=${100}
            label="${percent} percent of the steps are done" />`}
        </div>
        <div class="job-actions">
          ${isUnfinished(job) ? html`<${CancelButton} job=${job} />` : html`<${RetryButton} job=${job} />`}
        </div>
      </div>
      ${job.error && html`<p class="job-error">${job.error}</p>`}
      ${isOpen && html`<${Items} job=${job} />`}
    </li>`;
}

function countsText(job) {
  const { succeeded = 0, failed = 0, canceled = 0 } = job.items;
  const parts = [isUnfinished(job) ? `${succeeded} of ${countOf(job.images, "image")}` : countOf(job.images, "image")];
  if (failed) parts.push(`${failed} failed`);
  if (canceled) parts.push(`${canceled} canceled`);
  return parts.join(", ");
}

function etaText(job) {
  if (!isUnfinished(job)) return job.finished_at ? formatTime(job.finished_at) : "";
  const eta = formatEta(job.eta_s, job.eta_range_s);
  if (job.status !== "in_queue" || !job.queue_position) return eta;
  return [`${countOf(job.queue_position, "image")} before it`, eta].filter(Boolean).join(", ");
}

// Failed and canceled images again, with the request that this browser sent: the API does not show theirs.
function RetryButton({ job }) {
  const body = useMemo(() => sentBody(job.request_id), [job.request_id]);
  const missing = (job.items.failed ?? 0) + (job.items.canceled ?? 0);
  if (!missing || !body || !may("submit")) return null;
  return html`
    <button type="button" class="quiet" aria-label="Retry ${countOf(missing, "image")}: ${promptOf(job)}"
      onClick=${() => retryMissingImages(job, body)}>
      Retry ${missing}
    </button>`;
}
