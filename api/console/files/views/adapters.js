// The adapter files that jobs can name: a list with a search, uploads, and the report of the one that is chosen.
import { useAdapterFiles } from "../core/adapterfiles.js";
import { may } from "../core/api.js";
import { Empty, Problem } from "../core/parts.js";
import { go, route, setQuery } from "../core/router.js";
import { html, useState, useValue } from "../core/ui.js";
import { AdapterCard } from "./adapters/card.js";
import { FileList } from "./adapters/list.js";
import { Uploads } from "./adapters/uploads.js";

const SHOWN = 200;

export default function Adapters() {
  const { rest: [path], query } = useValue(route);
  const search = query.get("find") ?? "";
  const [isOver, setOver] = useState(false);
  const [dropped, setDropped] = useState([]);
  const list = useAdapterFiles(search, SHOWN);
  // With the search as it is by then: an upload may end later.
  const show = (chosen) => go("adapters", chosen ? [chosen] : [], Object.fromEntries(route.value.query));
  const canUpload = may("submit");
  const drop = (event) => {
    event.preventDefault();
    setOver(false);
    setDropped([...event.dataTransfer.files]);
  };
  const drag = canUpload && {
    onDragOver: (event) => { event.preventDefault(); setOver(true); },
    onDragLeave: (event) => { if (!event.currentTarget.contains(event.relatedTarget)) setOver(false); },
    onDrop: drop,
  };
  return html`
    <div class="adapters-view ${isOver ? "is-over" : ""} ${path ? "has-card" : ""}" ...${drag}>
      <div class="adapters-list">
        <h1>Adapters</h1>
        ${canUpload && html`
          <${Uploads} dropped=${dropped} onStored=${(stored) => { list.reload(); show(stored.path); }} />`}
        <label>Search
          <input type="search" value=${search} spellcheck="false" autocomplete="off"
            onInput=${(event) => setQuery({ find: event.target.value })} />
        </label>
        <${FileList} files=${list.found.slice(0, SHOWN)} chosen=${path} />
        <${Problem} error=${list.error} onRetry=${list.load} />
        <p class="field-help" role="status">${statusOf(list, search)}</p>
        ${list.hasMore && !list.isLoading && !search && html`<button type="button" onClick=${list.load}>Show more</button>`}
        ${!list.hasMore && !list.files.length && html`
          <${Empty} title="No adapters yet">
            <p>${canUpload ? "Drop a .safetensors file here, or put" : "Put"} files under the adapter root of the API and its workers.</p>
          <//>`}
      </div>
      ${path && html`<${AdapterCard} key=${path} path=${path} onClose=${() => show(null)} onDeleted=${() => { show(null); list.reload(); }} />`}
    </div>`;
}

function statusOf({ found, files, isLoading, hasMore }, search) {
  if (isLoading) return "Reading the list of adapters.";
  if (found.length > SHOWN) return `${found.length} files match; the first ${SHOWN} are shown. Type more of the name.`;
  if (search && !found.length && !hasMore && files.length) return "No file has this in its path.";
  return "";
}
