// Files of this computer on their way to the API, one after the other, each with its progress.
import { formatBytes } from "../../core/format.js";
import { announce, ProgressBar } from "../../core/parts.js";
import { sendFile } from "../../core/upload.js";
import { html, useEffect, useRef, useState } from "../../core/ui.js";

let lastId = 0;

// `dropped` are the files that were dropped last; `onStored` gets the API's description of each stored one.
export function Uploads({ dropped, onStored }) {
  const [uploads, setUploads] = useState([]);
  const picker = useRef(null);
  const isShown = useRef(true);
  useEffect(() => () => { isShown.current = false; }, []);
  const change = (id, changes) => setUploads((all) => all.map((each) => (each.id === id ? { ...each, ...changes } : each)));
  const forget = (id) => setUploads((all) => all.filter((each) => each.id !== id));
  const send = async (upload) => {
    change(upload.id, { error: null, sent: 0 });
    try {
      const stored = await sendFile("PUT", `/v1/adapters/${nameOf(upload.file)}`, upload.file, {
        onProgress: (sent) => change(upload.id, { sent }), signal: upload.aborter.signal,
      });
      forget(upload.id);
      announce(`${upload.file.name} is stored.`);
      // Whoever has gone to another view stays there.
      if (isShown.current) onStored(stored);
    } catch (error) {
      if (error.name === "AbortError") forget(upload.id);
      else if (isShown.current) change(upload.id, { error });
      else announce(`${upload.file.name}: ${error.message}`, { kind: "error" });
    }
  };
  const add = async (files) => {
    const added = files.map((file) => ({ id: ++lastId, file, sent: 0, error: null, aborter: new AbortController() }));
    setUploads((all) => [...all, ...added]);
    for (const upload of added) {
      if (!upload.aborter.signal.aborted) await send(upload);
    }
  };
  useEffect(() => { if (dropped.length) add(dropped); }, [dropped]);
  return html`
    <div class="uploads">
      <input type="file" accept=".safetensors" multiple hidden ref=${picker}
        onChange=${(event) => { add([...event.target.files]); event.target.value = ""; }} />
      <button type="button" onClick=${() => picker.current.click()}>Upload a file</button>
      <span class="field-help">or drop .safetensors files anywhere in this list</span>
      <ul aria-label="Uploads">${uploads.map((upload) => html`
        <${Upload} key=${upload.id} upload=${upload} onCancel=${() => { upload.aborter.abort(); forget(upload.id); }}
          onRetry=${() => send(upload)} />`)}
      </ul>
    </div>`;
}

function Upload({ upload: { file, sent, error }, onCancel, onRetry }) {
  return html`
    <li class="upload">
      <div class="upload-name">
        <span>${file.name}</span>
        ${!error && html`<span class="field-help">${formatBytes(sent)} of ${formatBytes(file.size)}</span>`}
        ${error && html`<button type="button" onClick=${onRetry}>Try again</button>`}
        <button type="button" class="quiet" aria-label="${error ? "Dismiss" : "Cancel the upload of"} ${file.name}" onClick=${onCancel}>✕</button>
      </div>
      ${error ? html`<p class="field-error" role="alert">${error.message}</p>`
        : html`<${ProgressBar} value=${sent} max=${file.size} label="Upload of ${file.name}" />`}
    </li>`;
}

// A name that the API takes: letters, digits, ".", "_" and "-", and the first is a letter or a digit.
function nameOf(file) {
  const name = file.name.replace(/\.safetensors$/i, "").replace(/[^A-Za-z0-9._-]+/g, "-").replace(/^[^A-Za-z0-9]+/, "");
  return name.slice(0, 128) || "adapter";
}
