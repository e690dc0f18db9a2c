// The view without images: where to get some.
import { getJson } from "../../core/api.js";
import { countOf, formatTime } from "../../core/format.js";
import { Empty, Problem } from "../../core/parts.js";
import { adapterText, pictureOf } from "../../core/image.js";
import { go, hrefOf } from "../../core/router.js";
import { html, useLoaded, useMemo, useState } from "../../core/ui.js";
import { RecentSweeps } from "./sweeps.js";

const MAX_JOBS = 24;
const STRIP = 6;

export function Start() {
  const { data, error, isLoading, reload } = useLoaded(({ signal }) => getJson("/v1/images?limit=200", { signal }), []);
  const jobs = useMemo(() => jobsOf(data?.data ?? []).slice(0, MAX_JOBS), [data]);
  return html`
    <h1>Compare</h1>
    <p class="compare-intro">
      Select images in the <a href=${hrefOf("gallery")}>gallery</a>, take all images of some jobs, or open a sweep. What differs
      between them, such as the adapter or the seed, becomes the rows and columns of a grid.
    </p>
    <${RecentSweeps} />
    <${Problem} error=${error} onRetry=${reload} />
    ${isLoading && !data && html`<div class="compare-skeleton" role="status" aria-label="Loading jobs">${[1, 2, 3, 4].map((each) => html`<span key=${each}></span>`)}</div>`}
    ${jobs.length > 0 && html`<${JobForm} jobs=${jobs} />`}
    ${data && !jobs.length && html`
      <${Empty} title="There are no images yet">
        <p>Render one prompt with several seeds or adapters, then compare them here.</p>
        <a href=${hrefOf("create")}>Create images</a>
      <//>`}`;
}

// Return { id, images } of each job, in the order of the images.
function jobsOf(images) {
  const jobs = new Map();
  for (const image of images) jobs.set(image.request_id, [...(jobs.get(image.request_id) ?? []), image]);
  return [...jobs].map(([id, own]) => ({ id, images: own }));
}

function JobForm({ jobs }) {
  const [chosen, setChosen] = useState([]);
  const toggle = (id) => setChosen(chosen.includes(id) ? chosen.filter((each) => each !== id) : [...chosen, id]);
  const count = jobs.filter(({ id }) => chosen.includes(id)).reduce((sum, { images }) => sum + images.length, 0);
  return html`
    <form class="compare-jobs" onSubmit=${(event) => { event.preventDefault(); go("compare", [], { requests: chosen.join(",") }); }}>
      <h2>Recent jobs</h2>
      <ul>
        ${jobs.map(({ id, images }) => html`
          <li key=${id}>
            <label class="compare-job">
              <input type="checkbox" checked=${chosen.includes(id)} onChange=${() => toggle(id)} />
              <span class="compare-strip">
                ${images.slice(0, STRIP).map((image) => html`<img key=${image.index} src=${pictureOf(image)} alt="" loading="lazy" decoding="async" />`)}
              </span>
              <span class="compare-job-text">
                <span class="compare-job-prompt">${images[0].prompt}</span>
                <small>${formatTime(images[0].created_at)} · ${countOf(images.length, "image")} · ${[...new Set(images.map(adapterText))].join(", ")}</small>
              </span>
            </label>
          </li>`)}
      </ul>
      <p class="compare-go">
        <button class="primary" disabled=${count < 2}>${count < 2 ? "Compare" : `Compare ${countOf(count, "image")}`}</button>
      </p>
    </form>`;
}
