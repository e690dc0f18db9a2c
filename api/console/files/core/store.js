// What the service does now, fed by the event stream: one stream for each tab.
import { may } from "./api.js";
import { follow } from "./events.js";
import { batch, signal } from "./ui.js";

// Jobs by id, newest first; see JobProgress in the OpenAPI page.
export const jobs = signal(new Map());
// FleetSummary of the OpenAPI page, of the images that the caller may see; null before the first snapshot.
export const fleet = signal(null);
// Latent previews by "request_id/index": { step, steps, image }; only of running images.
export const previews = signal(new Map());
// "connecting", "live", "reconnecting", or "closed" for a caller that may not read.
export const connection = signal("connecting");

// A tab that nobody looks at holds one of the six connections that a browser makes to a host, and has workers send
// previews. After this long it lets go, until somebody comes back to it.
const HIDDEN_MS = 30_000;

let stream = null;
let isPaused = false;
let pause = 0;

function connect() {
  stream = follow("/v1/events?previews=true", { onEvent: receive, onState: (state) => { connection.value = state; } });
}

function letGo() {
  isPaused = stream !== null;
  stream?.stop();
  stream = null;
}

function followVisibility() {
  clearTimeout(pause);
  if (document.hidden) pause = setTimeout(letGo, HIDDEN_MS);
  else if (isPaused) {
    isPaused = false;
    connect();
  }
}

document.addEventListener("visibilitychange", followVisibility);

export function startFollowing() {
  stream?.stop();
  stream = null;
  isPaused = false;
  jobs.value = new Map();
  previews.value = new Map();
  connection.value = "connecting";
  if (!may("read")) return;
  connect();
  // It may have been opened in the background.
  followVisibility();
}

// Exported for tests.
export function receive(name, data) {
  batch(() => {
    if (name === "snapshot") {
      jobs.value = ordered(data.jobs);
      fleet.value = data.fleet;
      forgetPreviews();
    } else if (name === "change") {
      const removed = new Set(data.removed ?? []);
      const kept = [...jobs.value.values()].filter((job) => !removed.has(job.request_id));
      jobs.value = ordered([...kept, ...(data.jobs ?? [])]);
      if (data.fleet) fleet.value = data.fleet;
      forgetPreviews();
    } else if (name === "preview") {
      previews.value = new Map(previews.value).set(`${data.request_id}/${data.index}`, data);
    }
  });
}

// Later entries replace earlier ones with the same id.
function ordered(list) {
  const byId = new Map(list.map((job) => [job.request_id, job]));
  return new Map([...byId].sort(([, one], [, other]) => (one.created_at < other.created_at ? 1 : -1)));
}

function forgetPreviews() {
  const running = new Set();
  for (const job of jobs.value.values()) {
    for (const item of job.running) running.add(`${job.request_id}/${item.index}`);
  }
  const kept = [...previews.value].filter(([name]) => running.has(name));
  if (kept.length !== previews.value.size) previews.value = new Map(kept);
}
