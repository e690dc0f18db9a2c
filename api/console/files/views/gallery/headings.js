// The lines above the images: of a day, and of one job or several small ones.
import { adapterText } from "../../core/image.js";
import { countOf } from "../../core/format.js";
import { hrefOf } from "../../core/router.js";
import { html } from "../../core/ui.js";
import { download } from "./downloads.js";
import { selectAll } from "./selection.js";

const DAY = new Intl.DateTimeFormat(undefined, { weekday: "long", day: "numeric", month: "long", year: "numeric" });
const TIME = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });
const DAY_MS = 86_400_000;

export function DayHeading({ date }) {
  return html`<div class="gallery-day-name" role="row"><div role="rowheader"><h2>${nameOfDay(date)}</h2></div></div>`;
}

function nameOfDay(date) {
  const now = new Date();
  const today = new Date(now.getFullYear(), now.getMonth(), now.getDate());
  // Rounded, because a day may have 23 or 25 hours.
  const age = Math.round((today - date) / DAY_MS);
  return age === 0 ? "Today" : age === 1 ? "Yesterday" : DAY.format(date);
}

export function SectionHeading({ top, height, images, jobs }) {
  const [id] = jobs;
  const isOne = jobs.length === 1;
  const actions = html`
    <button type="button" class="quiet" onClick=${() => selectAll(images)}>Select all</button>
    ${isOne && html`
      ${images.length > 1 && html`<a href=${hrefOf("compare", [], { requests: id })}>Compare</a>`}
      <button type="button" class="quiet" onClick=${() => download([[id, []]])}>Download zip</button>`}`;
  return html`
    <div class="gallery-section" role="row" style=${{ top: `${top}px`, height: `${height}px` }}>
      <span class="gallery-section-name" role="rowheader">${isOne ? jobText(images) : sharedText(images, jobs)}</span>
      <span class="gallery-section-actions" role="gridcell">${actions}</span>
    </div>`;
}

const timeOf = (image) => TIME.format(new Date(image.created_at));

function jobText(images) {
  const adapters = [...new Set(images.map(adapterText))];
  return `${timeOf(images[0])} · ${adapters.length > 2 ? `${adapters.length} adapters` : adapters.join(", ")} · ${countOf(images.length, "image")}`;
}

function sharedText(images, jobs) {
  const [last, first] = [timeOf(images[0]), timeOf(images.at(-1))];
  return `${first === last ? first : `${first} to ${last}`} · ${countOf(images.length, "image")} of ${countOf(jobs.length, "job")}`;
}
