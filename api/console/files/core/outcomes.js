// What the images of a job came to. The event stream says that an image has ended; its picture, or why there is none,
// comes from the job's result.
import { getJson } from "./api.js";
import { useEffect, useReducer, useState } from "./ui.js";

const ENDED = ["succeeded", "failed", "canceled"];
const MAX_JOBS = 60;
// A result grows with the job, so large jobs are read less often.
const PAUSE_MS = 700;
const PAUSE_MS_FOR_EACH_IMAGE = 15;

// Result by job: { ended, readAt, byIndex }; the least recently read first.
const known = new Map();

export const endedCount = (job) => ENDED.reduce((sum, state) => sum + (job.items[state] ?? 0), 0);

const isStale = (image) => new Date(image.url_expires_at) < new Date();

// Addresses are signed anew for each answer: a picture that is on the page keeps the one that it has.
function merge(before, result) {
  const byIndex = new Map();
  for (const image of result.outputs?.images ?? []) {
    const shown = before?.get(image.index)?.image;
    byIndex.set(image.index, { image: shown && !isStale(shown) ? shown : image });
  }
  for (const error of result.errors) byIndex.set(error.index, { error });
  return byIndex;
}

async function read(job, ended, abort) {
  const result = await getJson(`/v1/requests/${job.request_id}/result`, { signal: abort });
  const byIndex = merge(known.get(job.request_id)?.byIndex, result);
  known.delete(job.request_id);
  known.set(job.request_id, { ended, readAt: Date.now(), byIndex });
  if (known.size > MAX_JOBS) known.delete(known.keys().next().value);
}

const NONE = new Map();

// Return { outcomes, isComplete, reload }: `outcomes` has { image } or { error } by index, without images that were
// canceled; `isComplete` says whether it has all that the job's counts name.
export function useOutcomes(job) {
  const [, redraw] = useReducer((count) => count + 1, 0);
  const [round, reload] = useReducer((count) => count + 1, 0);
  const [failures, setFailures] = useState(0);
  const ended = endedCount(job);
  const kept = known.get(job.request_id);
  const isComplete = kept ? kept.ended >= ended : !ended;
  useEffect(() => {
    const hasStale = [...(kept?.byIndex.values() ?? [])].some(({ image }) => image && isStale(image));
    if (!ended || (isComplete && !round && !hasStale)) return;
    const aborter = new AbortController();
    const pause = (PAUSE_MS + PAUSE_MS_FOR_EACH_IMAGE * job.images) * (failures + 1);
    const wait = Math.max(0, (kept?.readAt ?? (failures ? Date.now() : 0)) + pause - Date.now());
    const timer = setTimeout(() => {
      read(job, ended, aborter.signal).then(
        () => { setFailures(0); redraw(); },
        (error) => { if (error.name !== "AbortError") setFailures((count) => Math.min(count + 1, 8)); },
      );
    }, wait);
    return () => { clearTimeout(timer); aborter.abort(); };
  }, [job.request_id, ended, round, failures]);
  return { outcomes: kept?.byIndex ?? NONE, isComplete, reload };
}
