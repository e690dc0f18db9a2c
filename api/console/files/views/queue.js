// What waits, runs and has just ended, and the slots that render it.
import { may } from "../core/api.js";
import { countOf } from "../core/format.js";
import { Empty } from "../core/parts.js";
import { hrefOf } from "../core/router.js";
import { connection, fleet, jobs } from "../core/store.js";
import { html, useValue } from "../core/ui.js";
import { useCalmList } from "./queue/calm.js";
import { JobRow } from "./queue/row.js";
import { Slots } from "./queue/slots.js";

export default function Queue() {
  const state = useValue(connection);
  if (!may("read")) {
    return html`<${Empty}
      title="This key may not look"><p>The queue needs the role read. Ask the operator for another key.</p><//>`;
  }
  return html`
    <h1 class="visually-hidden">Queue</h1>
    ${state === "reconnecting" && html`<p class="banner"
      role="status">Reconnecting. Nothing is lost; the list shows what was known before.</p>`}
    <${Numbers} />
    <${Jobs} isLoading=${state === "connecting"} />
    <${Slots} />`;
}

// Numbers that can be read across a room.
function Numbers() {
  const now = useValue(fleet);
  if (!now) return html`<dl class="numbers" aria-busy="true"></dl>`;
  const facts = [
    [now.queued, "waiting"],
    [now.running, "running"],
    [now.slots, now.slots === 1 ? "slot" : "slots"],
    [Math.round(now.images_last_minute), "images in the last minute"],
    [now.seconds_per_image ? now.seconds_per_image.toFixed(1) : "-", "seconds an image"],
  ];
  return html`
    <dl class="numbers">
      ${facts.map(([value, name]) => html`<div key=${name}><dt>${name}</dt><dd>${value.toLocaleString()}</dd></div>`)}
    </dl>
    ${now.slots === 0 && html`<p
      class="banner is-warning">No worker is connected. Jobs are kept, and start when one is.</p>`}`;
}

function Jobs({ isLoading }) {
  const all = [...useValue(jobs).values()];
  const { shown, waiting, showAll, ref } = useCalmList(all, (job) => job.request_id);
  if (isLoading) return html`<div class="jobs" aria-busy="true"></div>`;
  if (!all.length) {
    return html`<${Empty} title="Nothing waits or runs">
      <p><a href=${hrefOf("create")}>Create images</a>, or send a job to the API.</p>
    <//>`;
  }
  return html`
    <div class="jobs" ref=${ref}>
      <p class="jobs-new" aria-live="polite">
        ${waiting > 0 && html`
          <button type="button" class="pill" onClick=${showAll}>${countOf(waiting, "new job")}</button>`}
      </p>
      <ul class="job-list" aria-label="Jobs">
        ${shown.map((job) => html`<${JobRow} key=${job.request_id} job=${job} />`)}
      </ul>
    </div>`;
}
