// Zips of jobs, one after another: each is as large as its images.
import { announce } from "../../core/parts.js";
import { countOf } from "../../core/format.js";
import { saveArchive } from "../../pictures/save.js";

// Addresses of more indexes are too long for some proxies.
const MAX_INDEXES = 300;

// `jobs` are pairs of an id and the indexes of its images; an empty list stands for all of them.
export async function download(jobs) {
  announce(jobs.length === 1 ? "The zip is being prepared." : `${jobs.length} zips are being prepared, one for each job.`);
  const failures = [];
  for (const [id, indexes] of jobs) {
    try {
      await saveArchive(id, indexes.length > MAX_INDEXES ? [] : indexes);
    } catch (error) {
      failures.push(error.message);
    }
  }
  if (!failures.length) announce(`${countOf(jobs.length, "zip")} saved.`);
  else announce(failures[0], { kind: "error" });
}
