// The live slots in pages: what each has warm, what it draws and since when.
import { getJson, withQuery } from "../../core/api.js";
import { adapterName, formatBytes, formatTime } from "../../core/format.js";
import { Chip, Problem, ProgressBar } from "../../core/parts.js";
import { fleet, previews } from "../../core/store.js";
import { stageText } from "../../core/tile.js";
import { html, useEffect, useLoaded, useRef, useState, useValue } from "../../core/ui.js";

const PAGE = 24;
const REFRESH_MS = 3000;

// Call `act` again and again while the element is on the screen and the tab is shown.
function useRefresh(ref, act) {
  const latest = useRef(act);
  latest.current = act;
  useEffect(() => {
    let isVisible = false;
    const observer = new IntersectionObserver(([entry]) => { isVisible = entry.isIntersecting; });
    observer.observe(ref.current);
    const timer = setInterval(() => isVisible && !document.hidden && latest.current(), REFRESH_MS);
    return () => { observer.disconnect(); clearInterval(timer); };
  }, []);
}

export function Slots() {
  const section = useRef(null);
  // Cursors of the pages before this one, and of this one.
  const [cursors, setCursors] = useState([null]);
  const cursor = cursors.at(-1);
  const { data, error, isLoading, reload } = useLoaded(async ({ signal }) =>
    ({ ...await getJson(withQuery("/v1/slots", { limit: PAGE, cursor }), { signal }), cursor }), [cursors]);
  // Until the chosen page is there, the one before is shown, which knows what follows itself.
  const isShown = data?.cursor === cursor;
  // A new call would abort one that takes longer, and no answer would ever arrive.
  useRefresh(section, () => isLoading || reload());
  const total = useValue(fleet)?.slots;
  const first = (cursors.length - 1) * PAGE + 1;
  return html`
    <section class="slots" ref=${section} aria-labelledby="slots-title">
      <h2 id="slots-title">Slots ${total ? html`<span class="muted">${total}</span>` : ""}</h2>
      <${Problem} error=${error} onRetry=${reload} />
      ${data?.data.length === 0 && html`<p
        class="muted">No worker is connected. <code>flux2 worker</code> starts one; jobs wait until then.</p>`}
      <ul class="slot-list">${data?.data.map((slot) => html`<${SlotCard} key=${slot.name} slot=${slot} />`)}</ul>
      ${(data?.has_more || cursors.length > 1) && html`
        <p class="pages">
          <button type="button" class="quiet" disabled=${cursors.length === 1}
            onClick=${() => setCursors(cursors.slice(0, -1))}>Previous</button>
          Slots ${first} to ${first + (data?.data.length ?? 1) - 1}
          <button type="button" class="quiet" disabled=${!isShown || !data.has_more}
            onClick=${() => setCursors([...cursors, data.next_cursor])}>Next</button>
        </p>`}
    </section>`;
}

function SlotCard({ slot }) {
  const { item } = slot;
  const preview = useValue(previews).get(item && `${item.request_id}/${item.index}`)?.image;
  return html`
    <li class="slot is-${slot.state}">
      <header>
        <strong>${slot.name}</strong>
        <${Chip} kind=${slot.state === "faulty" ? "bad" : slot.state === "busy" ? "accent" : ""}>${slot.state}<//>
      </header>
      <div class="slot-now">
        <span class="slot-picture">${preview && html`<img src=${preview} alt="" />`}</span>
        <div>
          <p>${item ? stageText(item) : slot.state === "busy" ? "Rendering for another tenant" : "Idle"}</p>
          ${item && html`<${ProgressBar} value=${item.step} max=${item.steps ?? 1}
            label="Steps of the image on ${slot.name}" />`}
          <p class="muted">${item ? `Since ${formatTime(item.started_at)}` : slot.model}</p>
        </div>
      </div>
      <p class="slot-facts">
        ${warmText(slot.adapters)}
      </p>
      <p class="slot-facts muted">${factsOf(slot).join(" · ")}</p>
      ${slot.corrupted !== 0 && html`<p
        class="field-error">${slot.corrupted} base parameters differ from the checkpoint.</p>`}
    </li>`;
}

function warmText(adapters) {
  if (adapters === null) return html`<span class="muted">Adapters unknown</span>`;
  if (adapters === "base") return html`<${Chip}>base model<//>`;
  return adapters.split(" + ").map((path) => html`<${Chip} key=${path} kind="accent">${adapterName(path)}<//>`);
}

function factsOf(slot) {
  const used = slot.gpu_memory_used_bytes;
  const memory = slot.memory_bytes
    ? used === null ? formatBytes(slot.memory_bytes) : `${formatBytes(used)} of ${formatBytes(slot.memory_bytes)}` : "";
  const load = slot.gpu_utilization === null ? "" : `${Math.round(slot.gpu_utilization * 100)} % busy`;
  return [slot.device, slot.precision, memory, load].filter(Boolean);
}
