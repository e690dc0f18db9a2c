// The form of a job. What it holds is the draft; the server's schema validates the request while it is typed.
import { changeDraft, clearDraft, draft } from "../../core/draft.js";
import { countOf, formatSeconds } from "../../core/format.js";
import { inventory, modelOf } from "../../core/models.js";
import { announce, useKeys } from "../../core/parts.js";
import { fieldOf, loadSchemas, schemas } from "../../core/schema.js";
import { submitRequest } from "../../core/sent.js";
import { fleet } from "../../core/store.js";
import { html, useEffect, useLayoutEffect, useMemo, useRef, useState, useValue } from "../../core/ui.js";
import { Adapters } from "./adapters.js";
import { bodyOf, imageCount } from "./body.js";
import { Field } from "./fields.js";
import { ModelFields, MoreFields, SamplingFields } from "./settings.js";
import { Outgoing } from "./outgoing.js";
import { checkBody, problemsByField } from "./problems.js";
import { Prompts } from "./prompts.js";
import { References, uploads } from "./references.js";
import { Size } from "./size.js";

// Wildcards can stand for more images than any server takes.
const MAX_IMAGES = 10_000;

// Everything that the form shows about the request that it stands for.
function useRequest() {
  const fields = useValue(draft);
  const known = useValue(inventory);
  const rules = useValue(schemas);
  const request = useMemo(() => {
    const model = modelOf(known, fields.model) ?? known?.models[0] ?? null;
    const limits = known?.limits ?? null;
    const count = imageCount(fields);
    const most = Math.min(limits?.max_prompts ?? MAX_IMAGES, MAX_IMAGES);
    return { model, limits, count, body: bodyOf(fields, model, most) };
  }, [fields, known]);
  // Apart from the body: the rules may arrive after an answer about it.
  const problems = useMemo(() => checkBody({ ...request, schemas: rules }), [request, rules]);
  return { fields, rules, problems, ...request };
}

export function CreateForm({ onSent }) {
  const { fields, model, limits, rules, count, body, problems } = useRequest();
  // The document is as large as the page, and is of use once there is something to check.
  useEffect(() => { if (count || fields.loras.length) loadSchemas(); }, [count > 0, fields.loras.length > 0]);
  const [answer, setAnswer] = useState({ body: null, error: null, warnings: [], isSending: false });
  const form = useRef(null);
  const now = useValue(fleet);
  const isUploading = useIsUploading();
  // What the server said is about the body that it saw, and disappears with the first change.
  const refused = answer.error && answer.body === body ? answer.error : null;
  const warnings = answer.body === body ? answer.warnings : [];
  const shown = { ...(refused ? problemsByField(refused.fields) : {}), ...problems };
  // The list of models may still be on its way. What is sent meanwhile waits for it, until the draft changes.
  const [waiting, setWaiting] = useState(null);
  const isWaiting = waiting === fields && !body.model;
  const isReady = count > 0 && body.model && !answer.isSending && !Object.keys(problems).length && !isUploading;

  const submit = async (event) => {
    event?.preventDefault();
    if (!isReady) {
      if (count > 0 && !body.model) setWaiting(fields);
      else focusFirstProblem(form.current);
      return;
    }
    setWaiting(null);
    setAnswer({ body, error: null, warnings: [], isSending: true });
    try {
      const accepted = await submitRequest(body);
      setAnswer({ body, error: null, warnings: accepted.warnings, isSending: false });
      announce(`Accepted: ${countOf(body.prompts.length, "image")}.`);
      onSent?.(accepted);
    } catch (error) {
      setAnswer({ body, error, warnings: [], isSending: false });
      requestAnimationFrame(() => focusFirstProblem(form.current));
    }
  };
  // At once: before a frame is drawn, a key might send the job too.
  useLayoutEffect(() => { if (waiting === fields && body.model) submit(); }, [waiting, body.model]);
  // A question that is open has to be answered first.
  const submitByKey = (event) => (document.querySelector("dialog[open]:not(.sheet)") ? false : submit(event));
  useKeys({ "ctrl+enter": submitByKey, n: () => form.current.querySelector("textarea").focus() });
  const change = changeDraft;
  const parts = { draft: fields, change, model, problems: shown, schemas: rules };
  return html`
    <form class="create-form" ref=${form} noValidate onFocusIn=${loadSchemas} onSubmit=${submit}>
      <div class="create-fields">
        <${Prompts} ...${parts} />
        ${model?.uses_negative_prompt && html`
          <${Field} label="Negative prompt" problem=${shown.negative}>
            ${(attributes) => html`
              <input ...${attributes} value=${fields.negative}
                onInput=${(event) => change({ negative: event.target.value })} />`}
          <//>`}
        <${Adapters} ...${parts} model=${model?.id} />
        <${References} limits=${limits} problems=${shown} />
        <${Size} ...${parts} />
        <${SamplingFields} ...${parts} />
        <${ModelFields} ...${parts} models=${inventory.value?.models ?? []} />
        <${MoreFields} ...${parts} />
        <${Outgoing} body=${body} />
      </div>
      <div class="create-submit">
        ${shown[""] && html`<p class="field-error" role="alert">${shown[""]}</p>`}
        ${refused && !shown[""] && html`<${Refusal} error=${refused} isPlaced=${refused.fields.length > 0} />`}
        ${warnings.map((warning) => html`<p class="field-warning" key=${warning}>${warning}</p>`)}
        <div class="create-buttons">
          <button class="primary" disabled=${!isReady} title="Ctrl+Enter">
            ${buttonText({ answer, refused, count, now })}
          </button>
          <button type="button" class="quiet" onClick=${clear}>Clear</button>
        </div>
        ${isWaiting && html`<p class="field-help" role="status">The list of models is loading. The job is sent as soon as it is here.</p>`}
        <${Forecast} count=${count} now=${now} isUploading=${isUploading} />
      </div>
    </form>`;
}

function clear() {
  const before = draft.value;
  clearDraft();
  announce("The form is empty.", { action: { name: "Undo", run: () => changeDraft(before) } });
}

function useIsUploading() {
  return useValue(uploads).some((each) => !each.error);
}

// A refusal that stands at its field is not said twice.
function Refusal({ error, isPlaced }) {
  const text = isPlaced ? "The service refused this request; the reason is shown at its field." : error.message;
  return html`<p class="field-error" role="alert">${text}</p>`;
}

function buttonText({ answer, refused, count, now }) {
  if (answer.isSending) return "Sending";
  if (!count) return "Render";
  const images = countOf(count, "image");
  // Without a definite answer, the job may exist: the same request is sent under the same key.
  if (refused && (refused.status === 0 || refused.status >= 500)) return `Send ${images} again`;
  const pace = now?.slots && !now.queued ? now.seconds_per_image : null;
  return pace ? `Render ${images}, about ${formatSeconds(count * pace)}` : `Render ${images}`;
}

// What the job has to wait for.
function Forecast({ count, now, isUploading }) {
  if (isUploading) return html`<p class="field-help" role="status">A reference image is being uploaded.</p>`;
  if (now && !now.slots) return html`<p class="field-warning">No worker is connected. The job waits until one is.</p>`;
  if (!count || !now?.queued) return null;
  const ahead = `${countOf(now.queued, "image")} ${now.queued === 1 ? "waits" : "wait"} already`;
  const pace = now.seconds_per_image;
  return html`
    <p class="field-help">
      ${ahead}${pace ? `; with these, all are done in about ${formatSeconds((now.queued + count) * pace)}` : ""}.
    </p>`;
}

function focusFirstProblem(form) {
  form?.querySelector('[aria-invalid="true"]')?.focus();
}
