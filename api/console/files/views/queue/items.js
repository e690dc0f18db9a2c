// The images of a job, with what its status says about them. Steps and previews come from the stream of this tab: a
// stream for each open row would use up the six connections that a browser makes to a host.
import { getJson } from "../../core/api.js";
import { JobTiles } from "../../core/jobtiles.js";
import { endedCount } from "../../core/outcomes.js";
import { hrefOf } from "../../core/router.js";
import { copyText } from "../../core/parts.js";
import { html, useLoaded } from "../../core/ui.js";

export function Items({ job }) {
  const { data } = useLoaded(({ signal }) => getJson(`/v1/requests/${job.request_id}/status`, { signal }), [
    job.request_id, endedCount(job), job.status,
  ]);
  const again = data?.items.filter((item) => item.attempt > 1) ?? [];
  return html`
    <div class="job-items">
      <${JobTiles} job=${job} isSmall />
      ${data?.warnings.map((warning) => html`<p class="field-warning" key=${warning}>${warning}</p>`)}
      ${again.length > 0 && html`<p class="muted">${again.map(attemptText).join(" ")}</p>`}
      <p class="muted">
        Job <button type="button" class="link"
          onClick=${() => copyText(job.request_id, "The id")}><code>${job.request_id}</code></button>
        ${" "}<a href=${hrefOf("gallery", [], { request_id: job.request_id })}>Open in the gallery</a>
      </p>
    </div>`;
}

const attemptText = (item) => `Image ${item.index + 1} needed ${item.attempt} attempts.`;
