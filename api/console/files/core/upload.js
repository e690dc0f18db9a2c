// Send a file as the body of a call, with its progress, which `fetch` does not tell.
import { ApiError, addressOf, apiKey, isLocked } from "./api.js";

// Resolve to the JSON of the answer; `onProgress` gets the bytes that were sent. `signal` aborts.
export function sendFile(method, path, file, { onProgress, signal }) {
  return new Promise((resolve, reject) => {
    const call = new XMLHttpRequest();
    call.open(method, addressOf(path));
    call.responseType = "json";
    call.setRequestHeader("Content-Type", "application/octet-stream");
    if (apiKey.value) call.setRequestHeader("Authorization", `Bearer ${apiKey.value}`);
    call.upload.addEventListener("progress", (event) => onProgress(event.loaded));
    call.addEventListener("load", () => {
      if (call.status >= 200 && call.status < 300) return resolve(call.response);
      if (call.status === 401) isLocked.value = true;
      return reject(new ApiError(call.status, call.response ?? { title: call.statusText }));
    });
    call.addEventListener("error", () => reject(new ApiError(0, {
      detail: "The connection ended before the whole file had arrived. Nothing was stored; send the file again.",
    })));
    call.addEventListener("abort", () => reject(new DOMException("The upload was canceled.", "AbortError")));
    signal.addEventListener("abort", () => call.abort());
    call.send(file);
  });
}
