// What can be done with the selected images.
import { hrefOf } from "../../core/router.js";
import { countOf } from "../../core/format.js";
import { html, useValue } from "../../core/ui.js";
import { picksOf } from "../compare/picks.js";
import { download } from "./downloads.js";
import { clearSelection, jobsOfSelection, selection } from "./selection.js";

export function SelectionBar() {
  const selected = useValue(selection);
  if (!selected.size) return null;
  const jobs = jobsOfSelection(selected);
  return html`
    <div class="gallery-selection" role="toolbar" aria-label="Selected images">
      <strong>${countOf(selected.size, "image")} selected</strong>
      ${selected.size > 1 && html`<a class="gallery-compare" href=${hrefOf("compare", [], { images: picksOf(jobs) })}>Compare</a>`}
      <button type="button" onClick=${() => download([...jobs])}>${jobs.size === 1 ? "Download zip" : `Download ${jobs.size} zips`}</button>
      <button type="button" class="quiet" onClick=${clearSelection}>Clear</button>
    </div>`;
}
