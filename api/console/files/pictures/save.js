// Files that this page gives to the browser to save.
import { request } from "../core/api.js";

export function saveBlob(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  // The browser reads the blob after the click.
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

export const saveJson = (value, name) =>
  saveBlob(new Blob([`${JSON.stringify(value, null, 2)}\n`], { type: "application/json" }), name);

// Save images of a job as a zip: all, or those with some indexes. A link could not send the key.
export async function saveArchive(requestId, indexes = []) {
  const query = new URLSearchParams(indexes.map((index) => ["index", index]));
  const answer = await request(`/v1/requests/${encodeURIComponent(requestId)}/archive?${query}`);
  const [, name] = /filename="([^"]+)"/.exec(answer.headers.get("Content-Disposition")) ?? [];
  saveBlob(await answer.blob(), name ?? `${requestId}.zip`);
}
