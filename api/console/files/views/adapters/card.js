// What the header of an adapter file says, whether jobs can use it, and what was made with it.
import { getJson, may, withQuery } from "../../core/api.js";
import { useAsDraft } from "../../core/draft.js";
import { adapterName, formatBytes } from "../../core/format.js";
import { inventory, loadModels } from "../../core/models.js";
import { Chip, copyText, Problem } from "../../core/parts.js";
import { route, setQuery } from "../../core/router.js";
import { html, useEffect, useLoaded, useState, useValue } from "../../core/ui.js";
import { DeleteUpload } from "./deletion.js";
import { scaleText } from "./scale.js";
import { BlockStrip } from "./strip.js";
import { MadeImages } from "./made.js";

export function AdapterCard({ path, onClose, onDeleted }) {
  const known = useValue(inventory);
  const model = useValue(route).query.get("model") ?? known?.models[0]?.id;
  useEffect(() => { if (!known) loadModels().catch(() => {}); }, []);
  const { data, error, isLoading, reload } = useLoaded(
    async ({ signal }) => (model ? getJson(withQuery("/v1/adapters", { path, model }), { signal }) : null), [path, model],
  );
  return html`
    <article class="adapter-card" aria-label=${adapterName(path)} aria-busy=${isLoading || !model}>
      <header>
        <h2>${adapterName(path)}</h2>
        <button type="button" class="quiet" aria-label="Close the report" onClick=${onClose}>✕</button>
      </header>
      <${Problem} error=${error} onRetry=${reload} />
      ${data && html`<${Report} report=${data} models=${known?.models ?? []} onDeleted=${onDeleted} />`}
      <${MadeImages} path=${path} />
    </article>`;
}

function Report({ report, models, onDeleted }) {
  return html`
    <${Verdict} report=${report} />
    <${BlockStrip} report=${report} />
    <dl class="facts">
      ${factsOf(report).map(([name, value]) => html`<div key=${name}><dt>${name}</dt><dd>${value}</dd></div>`)}
      <div><dt><label for="card-model">checked against</label></dt><dd>
        <select id="card-model" value=${report.model} onChange=${(event) => setQuery({ model: event.target.value })}>
          ${models.map((each) => html`<option key=${each.id} value=${each.id}>${each.title}</option>`)}
        </select></dd></div>
    </dl>
    <${Actions} report=${report} onDeleted=${onDeleted} />`;
}

// Whether a job with the file is accepted, in the API's own sentences.
function Verdict({ report }) {
  const needs = report.must_ignore.map((part) => part.replaceAll("_", " ")).join(", ");
  return html`
    <div class="verdict">
      ${report.refused ? html`<p class="problem">${report.refused}</p>` : html`<p><${Chip} kind="accent">Jobs can use it<//></p>`}
      ${needs && html`<p class="field-warning">Create leaves out its ${needs} part, without which the file can be used.</p>`}
      ${report.warnings.map((warning) => html`<p class="field-warning" key=${warning}>${warning}</p>`)}
    </div>`;
}

function factsOf(report) {
  return [
    ["kind", report.kind],
    ["rank", report.ranks.join(", ")],
    ["scale", scaleText(report)],
    ["base model", report.base_model_version],
    ["training step", report.step?.toLocaleString()],
    ["trigger word", report.trigger],
    ["trained as", report.name],
    ["trainer", report.trainer && `${report.trainer} (a guess)`],
    ["tensors", Object.entries(report.dtypes).map(([type, count]) => `${count} ${type}`).join(", ")],
    ["size", formatBytes(report.size_bytes)],
    ["path", html`<code>${report.path}</code>`],
    ["sha256", report.sha256 && html`<code>${report.sha256}</code>`],
  ].filter(([, value]) => value);
}

function Actions({ report, onDeleted }) {
  const [isDeleting, setDeleting] = useState(false);
  if (!may("submit")) return null;
  const isUsable = !report.refused || report.must_ignore.length > 0;
  const use = () => useAsDraft({
    loras: [{ path: report.path, ignore: report.must_ignore }], model: report.model, trigger_word: report.trigger,
  });
  return html`
    <p class="card-actions">
      <button type="button" class="primary" disabled=${!isUsable} onClick=${use}>Use in Create</button>
      <button type="button" onClick=${() => copyText(report.path, "The path")}>Copy the path</button>
      ${report.path.startsWith("upload:") && html`
        <button type="button" class="danger" onClick=${() => setDeleting(true)}>Delete</button>`}
      ${isDeleting && html`<${DeleteUpload} path=${report.path} onClose=${() => setDeleting(false)} onDeleted=${onDeleted} />`}
    </p>`;
}
