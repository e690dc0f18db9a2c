// Up to three reference images: dropped, pasted, chosen or named by an address.
import { countOf, formatBytes } from "../../core/format.js";
import { changeDraft, draft } from "../../core/draft.js";
import { REFERENCE_FIELDS } from "../../core/image.js";
import { uploadReference } from "../../core/reference.js";
import { announce } from "../../core/parts.js";
import { html, signal, useLayoutEffect, useRef, useState, useValue } from "../../core/ui.js";

// Files on their way: { id, name, address (blob URL), error }.
export const uploads = signal([]);
let lastUpload = 0;

const change = (id, changes) => {
  uploads.value = uploads.value.map((each) => (each.id === id ? { ...each, ...changes } : each));
};

function forget(id) {
  uploads.value = uploads.value.filter((each) => {
    if (each.id === id) URL.revokeObjectURL(each.address);
    return each.id !== id;
  });
}

async function upload(file, limits) {
  const id = ++lastUpload;
  uploads.value = [...uploads.value, { id, name: file.name, address: URL.createObjectURL(file), error: null }];
  if (limits && file.size > limits.max_reference_bytes) {
    const most = formatBytes(limits.max_reference_bytes);
    change(id, { error: `The file has ${formatBytes(file.size)}, but at most ${most} are allowed.` });
    return;
  }
  try {
    const reference = await uploadReference(file);
    // Somebody may have removed it.
    if (!uploads.value.some((each) => each.id === id)) return;
    changeDraft({ references: [...draft.value.references, reference].slice(0, REFERENCE_FIELDS.length) });
    forget(id);
  } catch (error) {
    change(id, { error: error.message });
  }
}

export function References({ limits, problems }) {
  const { references } = useValue(draft);
  const pending = useValue(uploads);
  const chooser = useRef(null);
  const room = REFERENCE_FIELDS.length - references.length - pending.filter((each) => !each.error).length;
  const add = (files) => {
    const images = [...files].filter((file) => file.type.startsWith("image/"));
    images.slice(0, room).forEach((file) => upload(file, limits));
    const refuse = (text) => announce(text, { kind: "error" });
    if (images.length > room) refuse(`A prompt has at most ${REFERENCE_FIELDS.length} reference images.`);
    else if (!images.length) refuse("Only images can be references. Adapters are uploaded in Adapters.");
  };
  const isOver = useDroppedFiles(add);
  usePastedImages(add);
  const remove = (slot) => changeDraft({ references: references.filter((_, each) => each !== slot) });
  return html`
    <fieldset class="references ${isOver ? "is-over" : ""}">
      <legend>Reference images</legend>
      <ul>
        ${references.map((reference, slot) => html`
          <${Reference} key=${`${reference.path} ${slot}`} ...${reference} problem=${problems[`references.${slot}`]}
            onRemove=${() => remove(slot)} />`)}
        ${pending.map((each) => html`
          <${Reference} key=${each.id} name=${each.name} thumbnail=${each.error ? "" : each.address}
            problem=${each.error}
            isUploading=${!each.error} onRemove=${() => forget(each.id)} />`)}
      </ul>
      ${room > 0 && html`
        <div class="drop">
          <p>Drop or paste ${countOf(room, "image")}, or <button type="button" class="link"
            onClick=${() => chooser.current.click()}>choose a file</button></p>
          <input ref=${chooser} type="file" accept="image/png,image/jpeg,image/webp,image/bmp" multiple hidden
            aria-label="Reference images"
              onChange=${(event) => { add(event.target.files); event.target.value = ""; }} />
          <${Address} />
        </div>`}
    </fieldset>`;
}

function Reference({ path, name, thumbnail, width, height, warnings = [], problem, isUploading, onRemove }) {
  const size = width ? `${width} x ${height}` : isUploading ? "Uploading" : "";
  return html`
    <li class="reference">
      ${thumbnail ? html`<img src=${thumbnail} alt="" />` : html`<span class="reference-blank"
        aria-hidden="true"></span>`}
      <div>
        <p class="reference-name" title=${path}>${name}</p>
        ${size && html`<p class="field-help">${size}</p>`}
        ${warnings.map((warning) => html`<p class="field-warning" key=${warning}>${warning}</p>`)}
        ${problem && html`<p class="field-error" role="alert">${problem}</p>`}
      </div>
      <button type="button" class="quiet" aria-label="Remove ${name}" onClick=${onRemove}>✕</button>
    </li>`;
}

function Address() {
  const [isOpen, setOpen] = useState(false);
  const [text, setText] = useState("");
  const add = () => {
    const path = text.trim();
    if (!path) return;
    const reference = { path, name: path.split("/").pop(), thumbnail: "", width: null, height: null, warnings: [] };
    changeDraft({ references: [...draft.value.references, reference] });
    setText("");
    setOpen(false);
  };
  if (!isOpen) return html`<button type="button" class="link"
    onClick=${() => setOpen(true)}>or type an address</button>`;
  return html`
    <div class="address">
      <input autofocus aria-label="Address of a reference image" placeholder="https://, s3:// or hf://" value=${text}
        onInput=${(event) => setText(event.target.value)}
        onKeyDown=${(event) => { if (event.key === "Enter") { event.preventDefault(); add(); } }} />
      <button type="button" onClick=${add}>Add</button>
    </div>`;
}

function useListener(events, listen) {
  const latest = useRef(listen);
  latest.current = listen;
  useLayoutEffect(() => {
    const call = (event) => latest.current(event);
    events.forEach((name) => addEventListener(name, call));
    return () => events.forEach((name) => removeEventListener(name, call));
  }, []);
}

// Pictures that are pasted anywhere on the page; texts go where the cursor is.
function usePastedImages(add) {
  useListener(["paste"], (event) => {
    const images = [...event.clipboardData.files].filter((file) => file.type.startsWith("image/"));
    if (!images.length) return;
    event.preventDefault();
    add(images);
  });
}

// Files that are dropped anywhere on the page: the browser would leave the page for one that misses its place. Return
// whether files are over it.
function useDroppedFiles(add) {
  const [isOver, setOver] = useState(false);
  useListener(["dragover", "dragleave", "drop"], (event) => {
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    setOver(event.type === "dragover");
    if (event.type === "drop") add(event.dataTransfer.files);
  });
  return isOver;
}
