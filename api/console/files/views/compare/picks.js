// The images to compare, as the address names them: `requests=ID,ID` for whole jobs, `images=ID:0.3,ID:1` for single ones,
// or `sweep=ID` for those of a sweep.
import { readImages } from "../../core/image.js";
import { readSweep } from "./sweeps.js";

// Return the text of the parameter `images` for a map from jobs to indexes.
export const picksOf = (jobs) =>
  [...jobs].map(([id, indexes]) => `${id}:${[...indexes].sort((one, other) => one - other).join(".")}`).join(",");

// Return a map from each job to the set of its indexes, or to null for all of them.
export function parsePicks(query) {
  const picks = new Map();
  for (const part of partsOf(query.get("images"))) {
    const [id, indexes = ""] = part.split(":");
    picks.set(id, new Set(indexes.split(".").map(Number)));
  }
  for (const id of partsOf(query.get("requests"))) picks.set(id, null);
  return picks;
}

const partsOf = (text) => (text ?? "").split(",").map((part) => part.trim()).filter(Boolean);

// Return { images, problems, sweep } for an address; `sweep` is the state of the sweep that it names.
export async function loadAll(picks, sweepId, options) {
  if (!sweepId) return loadPicks(picks, options);
  const { status, images } = await readSweep(sweepId, options);
  return { images, problems: [], sweep: status };
}

// Return { images, problems }: a job that cannot be read does not hide the others.
async function loadPicks(picks, options) {
  const problems = [];
  const images = [];
  const jobs = await Promise.all([...picks].map(([id, indexes]) => readImages(id, options).then(
    (read) => read.filter((image) => !indexes || indexes.has(image.index)),
    (error) => {
      if (error.name === "AbortError") throw error;
      problems.push({ id, error });
      return [];
    },
  )));
  images.push(...jobs.flat());
  return { images, problems };
}
