// One image, from its place in the queue to its picture. Its box has the image's shape from the first moment, so
// nothing around it moves.
import { adapterName } from "./format.js";
import { Chip, copyText } from "./parts.js";
import { html, useRef, useState } from "./ui.js";

const STAGES = {
  fetch: "Fetching files",
  encode: "Reading the prompt",
  adapter: "Loading adapters",
  decode: "Decoding",
  upload: "Storing",
};

export function stageText(running) {
  if (!running) return "Starting";
  if (running.stage === "denoise" && running.steps) return `Step ${running.step} of ${running.steps}`;
  return STAGES[running.stage] ?? "Starting";
}

const STATE_TEXTS = {
  queued: "Waiting", finishing: "Storing", loading: "Loading", canceled: "Canceled", failed: "Failed",
};

// Arguments:
//   state     "queued", "running", "finishing", "loading" (its picture is read), "succeeded", "failed" or "canceled"
//   width, height  of the image in pixels
//   prompt, seed, adapters  what it shows and says to screen readers; seed may be null, adapters are names
//   running   { stage, step, steps } while it is rendered; preview  data URL, or null
//   image     ImageLine or Image of the API once it succeeded; error  { message } once it failed
//   href      where a click leads; onRetry  renders it again; onStale  its address no longer works
export function Tile(tile) {
  const shape = `${tile.width} / ${tile.height}`;
  const state = tile.state === "running" ? stageText(tile.running) : STATE_TEXTS[tile.state];
  return html`
    <article class="tile is-${tile.state}" style=${{ "--aspect": tile.width / tile.height }}
        aria-label=${[tile.prompt, state].filter(Boolean).join(". ")}>
      <div class="tile-box" style=${{ aspectRatio: shape }}>
        <${Picture} ...${tile} />
        ${tile.state === "queued" && html`<p class="tile-text">${tile.prompt}</p>`}
        ${(tile.state === "failed" || tile.state === "canceled") && html`<${Missing} ...${tile} />`}
        ${(tile.state === "running" || tile.state === "finishing") && html`<p class="tile-stage">${state}</p>`}
        <${StepBar} ...${tile} />
      </div>
      <${Caption} adapters=${tile.adapters} seed=${tile.image?.seed ?? tile.seed} />
    </article>`;
}

// The last preview stays below the picture, which fades in over it.
function Picture({ preview, image, prompt, href, onStale }) {
  const last = useRef(null);
  const [loaded, setLoaded] = useState("");
  if (preview) last.current = preview;
  const address = image?.thumbnail_url ?? image?.url;
  return html`
    ${last.current && html`<img class="tile-preview" src=${last.current} alt="" />`}
    ${address && html`
      <a class="tile-link" href=${href} aria-label=${`Open the image: ${prompt}`}>
        <img class="tile-image ${loaded === address ? "is-loaded" : ""}" src=${address} alt="" decoding="async"
          onLoad=${() => setLoaded(address)} onError=${onStale} />
      </a>`}`;
}

function StepBar({ state, running }) {
  if (state !== "running" && state !== "finishing") return null;
  const steps = running?.steps || 1;
  const done = state === "finishing" ? steps : running?.step ?? 0;
  return html`<progress class="bar tile-bar" value=${done} max=${steps} aria-hidden="true"></progress>`;
}

function Missing({ state, error, onRetry }) {
  const text = error?.message ?? (state === "failed" ? "This image failed." : "Canceled before it was finished.");
  return html`
    <div class="tile-missing">
      <p title=${text}>${text}</p>
      <div class="tile-actions">
        ${onRetry && html`<button type="button" onClick=${onRetry}>Retry</button>`}
        ${error && html`<button type="button" class="quiet"
          onClick=${() => copyText(text, "The error")}>Copy error</button>`}
      </div>
    </div>`;
}

function Caption({ adapters, seed }) {
  return html`
    <footer class="tile-caption">
      ${adapters?.map((path) => html`<${Chip} key=${path}>${adapterName(path)}<//>`)}
      ${seed !== null && seed !== undefined && seed !== "" && html`<span class="tile-seed">${seed}</span>`}
    </footer>`;
}
