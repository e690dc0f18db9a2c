// Start a batch and watch it: the form is on the left, and what the service draws on the right. On a phone the form is
// a sheet.
import { ApiError, getJson, may } from "../core/api.js";
import { changeDraft, draftOf, parametersOfImage } from "../core/draft.js";
import { loadModels } from "../core/models.js";
import { Dialog, Empty, Problem, announce } from "../core/parts.js";
import { go, route } from "../core/router.js";
import { html, useEffect, useLoaded, useState, useValue } from "../core/ui.js";
import { CreateForm } from "./create/form.js";
import { Wall } from "./create/wall.js";

const NARROW = matchMedia("(max-width: 860px)");

function useIsNarrow() {
  const [isNarrow, setNarrow] = useState(NARROW.matches);
  useEffect(() => {
    const listen = () => setNarrow(NARROW.matches);
    NARROW.addEventListener("change", listen);
    return () => NARROW.removeEventListener("change", listen);
  }, []);
  return isNarrow;
}

export default function Create() {
  const isNarrow = useIsNarrow();
  const [isOpen, setOpen] = useState(false);
  const { error, reload } = useLoaded(loadModels, []);
  usePrefill(() => setOpen(true));
  if (!may("submit")) {
    return html`
      <h1 class="visually-hidden">Create</h1>
      <${Empty} title="This key may look, but not render">
        <p>Submitting needs the role submit. Ask the operator for another key.</p>
      <//>
      <${Wall} />`;
  }
  return html`
    <h1 class="visually-hidden">Create</h1>
    <${Problem} error=${error} onRetry=${reload} />
    <div class="create">
      ${!isNarrow && html`<aside class="create-panel" aria-label="New images"><${CreateForm} /></aside>`}
      <${Wall} />
    </div>
    ${isNarrow && html`<button type="button" class="primary create-open"
      onClick=${() => setOpen(true)}>New images</button>`}
    ${isNarrow && isOpen && html`
      <${Dialog} title="New images" kind="sheet" onClose=${() => setOpen(false)}><${CreateForm}
        onSent=${() => setOpen(false)} /><//>`}`;
}

// `#/create?from=REQUEST_ID/INDEX` takes all parameters of an image; `?prompt=&seed=&lora=PATH@MULTIPLIER` single ones.
function usePrefill(onFilled) {
  const { query } = useValue(route);
  const text = query.toString();
  useEffect(() => {
    if (!text) return;
    const from = query.get("from");
    (from ? parametersOf(from) : Promise.resolve(parametersIn(query))).then(
      (parameters) => {
        changeDraft(draftOf(parameters));
        onFilled();
      },
      (error) => {
        if (!(error instanceof ApiError)) throw error;
        announce(error.message, { kind: "error" });
      },
    );
    // A reload must not undo what is typed from now on.
    go("create", [], {}, { replace: true });
  }, [text]);
}

async function parametersOf(name) {
  const [requestId, index] = name.split("/");
  const { outputs, metadata } = await getJson(`/v1/requests/${encodeURIComponent(requestId)}/result`);
  const image = outputs?.images.find((each) => each.index === Number(index));
  if (!image) throw new ApiError(404, { detail: `Job ${requestId} has no finished image ${index}.` });
  return parametersOfImage(image, metadata.model);
}

const NAMES = [
  "model", "width", "height", "seed", "sample_steps", "guidance_scale", "neg", "trigger_word", "preset", "engine",
  "adapter_mode", "output_format",
];

function parametersIn(query) {
  const parameters = Object.fromEntries(NAMES.filter((name) => query.has(name)).map((name) => [name, query.get(name)]));
  if (query.has("prompt")) parameters.prompts = query.getAll("prompt");
  if (query.has("reference")) parameters.references = query.getAll("reference");
  if (query.has("lora")) parameters.loras = query.getAll("lora").map(parseLora);
  return parameters;
}

// "a.safetensors@0.8", as on the command line: a number behind the last @ is the multiplier.
function parseLora(text) {
  const [, path, multiplier] = /^(.*)@(-?[\d.]+)$/.exec(text) ?? [null, text, "1"];
  return { path, network_multiplier: multiplier };
}
