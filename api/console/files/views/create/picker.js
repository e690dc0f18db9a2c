// Choose an adapter from the list of the server's files, or type an address.
import { useAdapterFiles } from "../../core/adapterfiles.js";
import { adapterName, formatBytes, formatTime } from "../../core/format.js";
import { Dialog, Problem } from "../../core/parts.js";
import { html, useRef, useState } from "../../core/ui.js";

const ADDRESS = /^(hf|s3|https|upload):/;
const SHOWN = 100;

export function AdapterPicker({ onPick, onClose }) {
  const [search, setSearch] = useState("");
  const list = useRef(null);
  const { found, hasMore, isLoading, error, load } = useAdapterFiles(ADDRESS.test(search) ? "" : search, SHOWN);
  const isAddress = ADDRESS.test(search.trim());
  const shown = isAddress ? [] : found.slice(0, SHOWN);
  const choose = () => {
    if (isAddress) onPick(search.trim());
    else if (shown.length) onPick(shown[0].path);
  };
  // Keys are for this dialog alone: it is a part of the form, which Enter would send.
  const onKeyDown = (event) => {
    event.stopPropagation();
    moveFocus(event, list.current);
    if (event.key !== "Enter" || event.target.localName !== "input") return;
    event.preventDefault();
    choose();
  };
  return html`
    <${Dialog} title="Add an adapter" kind="picker" onClose=${onClose}>
      <div onKeyDown=${onKeyDown}>
        <label>Search, or type an address: <code>hf://</code>, <code>s3://</code> or <code>https://</code>
          <input type="search" value=${search} autofocus spellcheck="false" autocomplete="off"
            onInput=${(event) => setSearch(event.target.value)} />
        </label>
        ${isAddress && html`<button type="button" class="primary" onClick=${choose}>Use this address</button>`}
        <ul class="picker-list" ref=${list}>
          ${shown.map((file) => html`
            <li key=${file.path}>
              <button type="button" onClick=${() => onPick(file.path)}>
                <strong>${adapterName(file.path)}</strong>
                <span class="picker-path">${file.path}</span>
                <span class="picker-facts">${formatBytes(file.size_bytes)} · ${formatTime(file.modified_at)}</span>
              </button>
            </li>`)}
        </ul>
        <${Problem} error=${error} onRetry=${load} />
        <p class="field-help"
          role="status">${statusText({ isAddress, isLoading, error, search, count: found.length })}</p>
        ${hasMore && !isLoading && !isAddress && !search && html`<button type="button"
          onClick=${load}>Show more</button>`}
      </div>
    <//>`;
}

function statusText({ isAddress, isLoading, error, search, count }) {
  if (isAddress || error) return "";
  if (isLoading) return "Reading the list of adapters.";
  if (count > SHOWN) return `${count} files match; the first ${SHOWN} are shown. Type more of the name.`;
  if (count) return "";
  if (search) return "No file has this in its path.";
  return "The adapter root has no files. Upload one in Adapters, or type an address.";
}

function moveFocus(event, list) {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!step) return;
  const stops = [event.currentTarget.querySelector("input"), ...list.querySelectorAll("button")];
  const next = stops[stops.indexOf(document.activeElement) + step];
  if (!next) return;
  event.preventDefault();
  next.focus();
}
