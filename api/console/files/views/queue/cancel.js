// Cancel a job; a question first only if that throws away work.
import { may, sendJson } from "../../core/api.js";
import { countOf } from "../../core/format.js";
import { promptOf } from "../../core/jobtiles.js";
import { Dialog, announce } from "../../core/parts.js";
import { html, useState } from "../../core/ui.js";

async function cancel(job) {
  try {
    await sendJson("POST", `/v1/requests/${job.request_id}/cancel`);
    announce("Canceled. Finished images stay.");
  } catch (error) {
    announce(error.message, { kind: "error" });
  }
}

export function CancelButton({ job }) {
  const [isAsking, setAsking] = useState(false);
  if (!may("submit")) return null;
  const confirm = () => { setAsking(false); cancel(job); };
  return html`
    <button type="button" class="quiet" disabled=${job.cancel_requested} aria-label="Cancel the job: ${promptOf(job)}"
        onClick=${() => (job.running.length ? setAsking(true) : cancel(job))}>
      ${job.cancel_requested ? "Canceling" : "Cancel"}
    </button>
    ${isAsking && html`
      <${Dialog} title="Cancel this job?" onClose=${() => setAsking(false)}>
        <div class="confirm">
          <p>${countOf(job.running.length, "image")} in the middle of rendering will be lost. Finished images stay.</p>
          <div class="confirm-buttons">
            <button type="button" class="danger" onClick=${confirm}>Cancel the job</button>
            <button type="button" autofocus onClick=${() => setAsking(false)}>Keep rendering</button>
          </div>
        </div>
      <//>`}`;
}
