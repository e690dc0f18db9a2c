// What was used: a chart, a table and a CSV of the same rows. The address holds what is asked.
import { getJson, request, withQuery } from "../../core/api.js";
import { Empty, Problem } from "../../core/parts.js";
import { route, setQuery } from "../../core/router.js";
import { saveBlob } from "../../pictures/save.js";
import { html, useLoaded, useState, useValue } from "../../core/ui.js";
import { BarChart } from "./chart.js";

const GROUPS = ["day", "tenant", "key", "model", "adapter"];
const AMOUNTS = [
  { name: "images", label: "images", write: (value) => value.toLocaleString() },
  { name: "megapixel_steps", label: "megapixel-steps", write: (value) => value.toLocaleString(undefined, { maximumFractionDigits: 1 }) },
  { name: "gpu_s", label: "GPU seconds", write: (value) => value.toFixed(1) },
  { name: "wasted_gpu_s", label: "wasted GPU seconds", write: (value) => value.toFixed(1) },
  { name: "cost", label: "cost", write: (value) => Number(value).toFixed(2) },
];

export function Usage() {
  const { query } = useValue(route);
  const groups = (query.get("by") ?? "day").split(",").filter((name) => GROUPS.includes(name));
  const asked = { from: query.get("from"), to: query.get("to"), group_by: groups.join(",") || "day" };
  const { data, error, isLoading, reload } = useLoaded(
    ({ signal }) => getJson(withQuery("/v1/usage", asked), { signal }), Object.values(asked),
  );
  const amounts = AMOUNTS.filter(({ name }) => data?.total[name] !== undefined);
  const amount = amounts.find(({ name }) => name === query.get("show")) ?? AMOUNTS[0];
  return html`
    <section class="usage" aria-busy=${isLoading}>
      <header class="section-head"><h2>Usage</h2><${CsvButton} asked=${asked} /></header>
      <${Controls} asked=${asked} groups=${groups} data=${data} amounts=${amounts} amount=${amount} />
      <${Problem} error=${error} onRetry=${reload} />
      ${data?.data.length === 0 && html`<${Empty} title="Nothing was used in these days"><p>Images count on the day on which they end.</p><//>`}
      ${data?.data.length > 0 && html`
        <${BarChart} rows=${data.data.map((row) => ({ label: labelOf(row, data.group_by), value: Number(row[amount.name]), text: amount.write(row[amount.name]) }))} unit=${amount.label} />
        <${UsageTable} data=${data} amounts=${amounts} />`}
    </section>`;
}

const labelOf = (row, groups) => groups.map((name) => row[name]).join(", ");

function Controls({ asked, groups, data, amounts, amount }) {
  const toggle = (name) => setQuery({ by: GROUPS.filter((each) => (each === name) !== groups.includes(each)).join(",") || "day" });
  return html`
    <div class="usage-controls">
      <label>From <input type="date" value=${asked.from ?? data?.first_day} onChange=${(event) => setQuery({ from: event.target.value })} /></label>
      <label>To <input type="date" value=${asked.to ?? data?.last_day} onChange=${(event) => setQuery({ to: event.target.value })} /></label>
      <fieldset>
        <legend>By</legend>
        ${GROUPS.map((name) => html`
          <label class="check" key=${name}><input type="checkbox" checked=${groups.includes(name)} onChange=${() => toggle(name)} /> ${name}</label>`)}
      </fieldset>
      <label>Bars show <select value=${amount.name} onChange=${(event) => setQuery({ show: event.target.value })}>
        ${amounts.map(({ name, label }) => html`<option key=${name} value=${name}>${label}</option>`)}
      </select></label>
    </div>`;
}

function UsageTable({ data, amounts }) {
  const heading = ({ name, label }) => (name === "cost" && data.currency ? `${label} (${data.currency})` : label);
  return html`
    <div class="table-scroll" tabindex="0" role="region" aria-label="Usage">
      <table>
        <thead><tr>
          ${data.group_by.map((name) => html`<th key=${name}>${name}</th>`)}
          ${amounts.map((amount) => html`<th class="number" key=${amount.name}>${heading(amount)}</th>`)}
        </tr></thead>
        <tbody>${data.data.map((row) => html`
          <tr key=${labelOf(row, data.group_by)}>
            ${data.group_by.map((name) => html`<td key=${name}>${row[name]}</td>`)}
            ${amounts.map(({ name, write }) => html`<td class="number" key=${name}>${write(row[name])}</td>`)}
          </tr>`)}
        </tbody>
        <tfoot><tr>
          <th colspan=${data.group_by.length}>total</th>
          ${amounts.map(({ name, write }) => html`<td class="number" key=${name}>${write(data.total[name])}</td>`)}
        </tr></tfoot>
      </table>
    </div>`;
}

// A link could send no key, so the page fetches the file and hands it to the browser.
function CsvButton({ asked }) {
  const [error, setError] = useState(null);
  const download = async () => {
    setError(null);
    try {
      const answer = await request(withQuery("/v1/usage", { ...asked, format: "csv" }));
      const name = /filename="([^"]+)"/.exec(answer.headers.get("Content-Disposition") ?? "")?.[1] ?? "usage.csv";
      saveBlob(await answer.blob(), name);
    } catch (failure) {
      setError(failure);
    }
  };
  return html`<${Problem} error=${error} /><button type="button" onClick=${download}>Download as CSV</button>`;
}
