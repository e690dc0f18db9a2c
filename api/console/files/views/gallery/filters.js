// What the gallery shows. All of it is in the address, so it can be shared.
import { adapterName } from "../../core/format.js";
import { setQuery } from "../../core/router.js";
import { html, useId, useLayoutEffect, useRef, useState } from "../../core/ui.js";

const NAMES = ["prompt", "adapter", "seed", "since", "until", "request_id", "model", "tenant"];
const PAUSE_MS = 300;

export const isFiltered = (query) => NAMES.some((name) => query.get(name));

export const clearFilters = () => setQuery(Object.fromEntries(NAMES.map((name) => [name, null])));

// Return the parameters of GET /v1/images. Dates are days where the reader is; `until` includes its day.
export function parametersOf(query) {
  const { since, until, ...others } = Object.fromEntries(NAMES.map((name) => [name, query.get(name) ?? ""]));
  return { ...others, since: startOf(since, 0), until: startOf(until, 1) };
}

function startOf(day, later) {
  const match = /^(\d{4})-(\d\d)-(\d\d)$/.exec(day);
  return match ? new Date(match[1], match[2] - 1, Number(match[3]) + later).toISOString() : "";
}

export function Filters({ query, adapters }) {
  const list = useId();
  const [isOpen, setOpen] = useState(false);
  const text = (name) => ({ name, value: query.get(name) ?? "", onChange: (value) => setQuery({ [name]: value || null }) });
  const hidden = ["adapter", "seed", "since", "until"].filter((name) => query.get(name)).length;
  return html`
    <form class="gallery-filters ${isOpen ? "is-open" : ""}" role="search" aria-label="Filter images" onSubmit=${(event) => event.preventDefault()}>
      <${TextFilter} ...${text("prompt")} label="Prompt" type="search" placeholder="Words of the prompt" kind="is-wide" />
      <button type="button" class="gallery-more-filters" aria-expanded=${isOpen} onClick=${() => setOpen(!isOpen)}>
        Filters${hidden ? ` (${hidden})` : ""}
      </button>
      <${TextFilter} ...${text("adapter")} label="Adapter" type="search" placeholder="Any" list=${list} />
      <datalist id=${list}>${adapters.map((path) => html`<option key=${path} value=${adapterName(path)} />`)}</datalist>
      <${TextFilter} ...${text("seed")} label="Seed" type="search" placeholder="Any" inputmode="numeric" check=${checkSeed} kind="is-narrow" />
      <${TextFilter} ...${text("since")} label="From" type="date" max=${query.get("until")} />
      <${TextFilter} ...${text("until")} label="To" type="date" min=${query.get("since")} />
      ${query.get("request_id") && html`
        <p class="gallery-fixed">Only job <code>${query.get("request_id").slice(0, 8)}</code>
          <button type="button" class="quiet" aria-label="Show all jobs" onClick=${() => setQuery({ request_id: null })}>✕</button></p>`}
      ${isFiltered(query) && html`<button type="button" class="quiet" onClick=${clearFilters}>Clear filters</button>`}
    </form>`;
}

const checkSeed = (text) => (/^\d*$/.test(text) ? "" : "A seed is a whole number, such as 42.");

function TextFilter({ label, value, onChange, check = () => "", kind = "", ...attributes }) {
  const [text, setText] = useState(value);
  const timer = useRef(0);
  const sent = useRef(value);
  const id = useId();
  // Only a value that came from elsewhere: what was sent from here may be older than what has been typed since.
  useLayoutEffect(() => {
    if (value === sent.current) return;
    clearTimeout(timer.current);
    sent.current = value;
    setText(value);
  }, [value]);
  useLayoutEffect(() => () => clearTimeout(timer.current), []);
  const send = (next) => {
    if (check(next.trim())) return;
    sent.current = next.trim();
    onChange(sent.current);
  };
  const onInput = ({ target }) => {
    setText(target.value);
    clearTimeout(timer.current);
    timer.current = setTimeout(send, PAUSE_MS, target.value);
  };
  const onKeyDown = (event) => { if (event.key === "Enter") { clearTimeout(timer.current); send(event.target.value); } };
  const problem = check(text.trim());
  return html`
    <div class="gallery-filter ${kind}">
      <label>${label}
        <input ...${attributes} value=${text} autocomplete="off" aria-invalid=${problem ? "true" : null}
          aria-describedby=${problem ? id : null} onInput=${onInput} onKeyDown=${onKeyDown} />
      </label>
      ${problem && html`<span id=${id} class="field-error" role="alert">${problem}</span>`}
    </div>`;
}
