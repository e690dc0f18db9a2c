// Small components that several views share.
import { html, signal, useId, useLayoutEffect, useRef, useState, useValue } from "./ui.js";

// What an API call failed with, in the API's own words.
export function Problem({ error, onRetry }) {
  if (!error) return null;
  return html`
    <div class="problem" role="alert">
      <p>${error.message}</p>
      ${onRetry && html`<button type="button" onClick=${onRetry}>Try again</button>`}
    </div>`;
}

// A state without content: what is missing, and what to do about it.
export function Empty({ title, children }) {
  return html`<div class="empty"><h2>${title}</h2>${children}</div>`;
}

// `value` of `max` steps; `label` names it for screen readers.
export function ProgressBar({ value, max, label }) {
  return html`<progress class="bar" value=${value} max=${Math.max(1, max)} aria-label=${label}></progress>`;
}

export function Chip({ children, kind = "" }) {
  return html`<span class="chip ${kind}">${children}</span>`;
}

// The modal dialogs that are open, the topmost last. It covers the page and keeps it from screen readers, so notes are
// shown in it.
const dialogs = signal([]);

// A modal dialog: the browser traps the focus, closes it with Escape and gives the focus back. With `ownsKeys`, no key
// reaches the view behind it.
export function Dialog({ title, onClose, children, kind = "", ownsKeys = false }) {
  const dialog = useRef(null);
  const heading = useId();
  const isShown = useRef(true);
  // At once: the browser gives the focus back as it closes, and nothing may have taken it to another place before.
  useLayoutEffect(() => {
    const { current } = dialog;
    current.showModal();
    dialogs.value = [...dialogs.value, heading];
    return () => {
      isShown.current = false;
      dialogs.value = dialogs.value.filter((each) => each !== heading);
      current.close();
    };
  }, []);
  // The browser announces the close of a dialog that its view has removed already, too.
  const close = () => { if (isShown.current) onClose(); };
  // A text that is selected with the mouse may end outside.
  const isPressedOutside = useRef(false);
  const press = (event) => { isPressedOutside.current = event.target === dialog.current; };
  const closeOutside = (event) => { if (isPressedOutside.current && event.target === dialog.current) onClose(); };
  return html`
    <dialog ref=${dialog} class="dialog ${kind}" aria-labelledby=${heading} onClose=${close}
        onPointerDown=${press} onClick=${closeOutside} onKeyDown=${ownsKeys ? (event) => event.stopPropagation() : null}>
      <header><h2 id=${heading}>${title}</h2><button type="button" class="quiet" aria-label="Close" onClick=${onClose}>✕</button></header>
      ${children}
      <${Notes} dialog=${heading} />
    </dialog>`;
}

// A question before something that cannot be undone. An error of `onConfirm`, a promise, is shown in it.
export function Confirmation({ title, action, onConfirm, onClose, children }) {
  const [error, setError] = useState(null);
  return html`
    <${Dialog} title=${title} onClose=${onClose} ownsKeys>
      <div class="confirm">
        <p>${children}</p>
        <${Problem} error=${error} />
        <p class="confirm-buttons">
          <button type="button" onClick=${onClose}>Keep it</button>
          <button type="button" class="danger" onClick=${() => onConfirm().catch(setError)}>${action}</button>
        </p>
      </div>
    <//>`;
}

// Messages that announce what happened; screen readers read them too.
const notes = signal([]);
let lastNote = 0;

export function announce(text, { kind = "info", action = null } = {}) {
  const note = { id: ++lastNote, text, kind, action };
  notes.value = [...notes.value.slice(-2), note];
  setTimeout(() => { notes.value = notes.value.filter((each) => each !== note); }, action ? 12000 : 6000);
}

// `dialog` is the one that it is part of; none for the page's own.
export function Notes({ dialog }) {
  const all = useValue(notes);
  const shown = useValue(dialogs).at(-1) === dialog ? all : [];
  return html`
    <div class="notes" role="status" aria-live="polite">
      ${shown.map((note) => html`
        <div class="note ${note.kind}" key=${note.id}>
          ${note.text}
          ${note.action && html`<button type="button" class="quiet" onClick=${note.action.run}>${note.action.name}</button>`}
        </div>`)}
    </div>`;
}

// Copy a text, and say so.
export async function copyText(text, what) {
  try {
    await navigator.clipboard.writeText(text);
    announce(`${what} copied.`);
  } catch {
    announce(`The browser does not let this page copy; ${what.toLowerCase()} is in the console of the developer tools.`, { kind: "error" });
    console.info(text);
  }
}

// Call `act(event)` for a key while no field has the focus; a modifier in the name is needed: "ctrl+enter".
export function useKeys(keys) {
  const latest = useRef(keys);
  latest.current = keys;
  // At once: whoever sees a view may use its keys.
  useLayoutEffect(() => {
    const listen = (event) => {
      const isField = event.target.closest?.("input, textarea, select, [contenteditable]");
      const name = `${event.ctrlKey || event.metaKey ? "ctrl+" : ""}${event.key.toLowerCase()}`;
      const act = latest.current[name];
      if (!act || event.altKey || (isField && !name.startsWith("ctrl+") && name !== "escape")) return;
      if (act(event) !== false) event.preventDefault();
    };
    addEventListener("keydown", listen);
    return () => removeEventListener("keydown", listen);
  }, []);
}
