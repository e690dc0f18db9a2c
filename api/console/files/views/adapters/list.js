// The rows of the list: name, place, size and age of each file.
import { adapterName, formatBytes, formatTime } from "../../core/format.js";
import { hrefOf, route } from "../../core/router.js";
import { html, useValue } from "../../core/ui.js";

export function FileList({ files, chosen }) {
  const { query } = useValue(route);
  return html`
    <ul class="file-list" aria-label="Adapter files">
      ${files.map((file) => html`
        <li key=${file.path}>
          <a href=${hrefOf("adapters", [file.path], Object.fromEntries(query))} aria-current=${file.path === chosen ? "true" : null}>
            <strong>${adapterName(file.path)}</strong>
            <span class="file-facts">${formatBytes(file.size_bytes)} · ${formatTime(file.modified_at)}</span>
            <span class="file-path">${placeOf(file)}</span>
          </a>
        </li>`)}
    </ul>`;
}

// "uploaded, version 5af74d065dae" or the folder under the adapter root.
function placeOf(file) {
  if (file.path.startsWith("upload:")) return `uploaded, version ${file.sha256.slice(0, 12)}`;
  const folder = file.path.split("/").slice(0, -1).join("/");
  return folder ? `in ${folder}` : "under the adapter root";
}
