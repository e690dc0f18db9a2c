// Bars next to each other, as high as their values. The table has the same numbers, for people who cannot see them.
import { html } from "../../core/ui.js";

const WIDTH = 720;
const HEIGHT = 160;
// More bars than this would be thinner than their gaps.
const MOST_BARS = 120;
const MOST_LABELS = 8;
// Few bars stand next to each other, instead of far apart.
const WIDEST_STEP = 96;

// `rows`: { label, value, text }; the first `MOST_BARS` are drawn.
export function BarChart({ rows, unit }) {
  const shown = rows.slice(0, MOST_BARS);
  const highest = Math.max(...shown.map(({ value }) => value)) || 1;
  const step = Math.min(WIDTH / shown.length, WIDEST_STEP);
  return html`
    <figure class="chart">
      <svg viewBox="0 0 ${WIDTH} ${HEIGHT}" preserveAspectRatio="none" role="img" aria-label="Bars of ${unit}; the table below has the numbers">
        ${shown.map(({ label, value, text }, index) => html`
          <rect key=${label} x=${index * step} width=${step * 0.8} y=${HEIGHT * (1 - value / highest)} height=${(HEIGHT * value) / highest}>
            <title>${label}: ${text} ${unit}</title>
          </rect>`)}
      </svg>
      <${Labels} rows=${shown} share=${step / WIDTH} />
      ${rows.length > MOST_BARS && html`<p class="field-help">The first ${MOST_BARS} of ${rows.length} rows are drawn.</p>`}
    </figure>`;
}

// Every label where there is room, else the first and the last.
function Labels({ rows, share }) {
  if (rows.length > MOST_LABELS) {
    return html`<figcaption class="chart-ends"><span>${rows[0].label}</span><span>${rows.at(-1).label}</span></figcaption>`;
  }
  return html`
    <figcaption>${rows.map(({ label }) => html`<span key=${label} title=${label} style=${{ width: `${100 * share}%` }}>${label}</span>`)}</figcaption>`;
}
