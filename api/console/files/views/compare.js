// Images of one job or several as a grid of what differs between them. The address says which and how.
import { countOf } from "../core/format.js";
import { keyOf, rereadImages } from "../core/image.js";
import { Problem, announce } from "../core/parts.js";
import { route } from "../core/router.js";
import { html, useLayoutEffect, useLoaded, useMemo, useRef, useState, useValue } from "../core/ui.js";
import { useZoom } from "../pictures/zoom.js";
import { againstOf, axesOf, heldImages, placeOfReference } from "./compare/address.js";
import { ChoiceBar } from "./compare/choicebar.js";
import { tableOf, varying } from "./compare/dimensions.js";
import { useCompareKeys } from "./compare/keys.js";
import { loadAll, parsePicks } from "./compare/picks.js";
import { loadRatings } from "./compare/ratings.js";
import { Start } from "./compare/start.js";
import { SweepBar, isEnded } from "./compare/sweeps.js";
import { Table } from "./compare/table.js";
import { AGAINST, Toolbar } from "./compare/toolbar.js";

export default function Compare() {
  const { query } = useValue(route);
  const sweepId = query.get("sweep");
  const picked = `${sweepId ?? ""} ${query.get("requests") ?? ""} ${query.get("images") ?? ""}`;
  const picks = useMemo(() => parsePicks(query), [picked]);
  if (!picks.size && !sweepId) return html`<${Start} />`;
  // With a key: the images of one address must not be shown under another.
  return html`<${Picked} key=${picked} picks=${picks} sweepId=${sweepId} query=${query} />`;
}

function Picked({ picks, sweepId, query }) {
  const { data, error, isLoading, reload } = useLoaded((options) => loadAll(picks, sweepId, options), []);
  const jobs = sweepId ? data?.sweep?.jobs.map(({ request_id }) => request_id) ?? [] : [...picks.keys()];
  // At once: a rating that is given before would replace those that are kept.
  useLayoutEffect(() => loadRatings(jobs), [jobs.join()]);
  if (error) return html`<${Heading} /><${Problem} error=${error} onRetry=${reload} />`;
  if (!data) return html`<${Heading} /><${Skeleton} />`;
  return html`
    <${Heading} />
    ${data.problems.map(({ id, error: problem }) => html`<${Problem} key=${id} error=${problem} onRetry=${reload} />`)}
    ${data.sweep && html`<${SweepBar} sweep=${data.sweep} shown=${data.images.length} onReload=${reload} />`}
    ${data.images.length > 0
      ? html`<${Comparison} key=${data.images.length} images=${data.images} query=${query} />`
      : !data.problems.length && !(data.sweep && !isEnded(data.sweep)) && html`
        <${Problem} error=${new Error("None of these images is finished yet. Try again when the jobs have rendered some.")} onRetry=${reload} />`}
    ${isLoading && html`<p class="visually-hidden" role="status">Loading images</p>`}`;
}

const Heading = () => html`<h1 class="visually-hidden">Compare</h1>`;

function Skeleton() {
  return html`<div class="compare-skeleton" role="status" aria-label="Loading images">${Array.from({ length: 8 }, (_, index) => html`<span key=${index}></span>`)}</div>`;
}

function Comparison({ images: loaded, query }) {
  const [images, setImages] = useState(loaded);
  const [active, setActive] = useState({ row: 0, column: 0 });
  const [reference, setReference] = useState(null);
  const [showsDifference, setShowsDifference] = useState(false);
  const [scale, setScale] = useState(1);
  const root = useRef(null);
  const axes = axesOf(query, images);
  const shown = useMemo(() => heldImages(query, images), [images, query.toString()]);
  const table = useMemo(() => tableOf(shown, axes), [shown, axes.rows, axes.columns]);
  const place = { row: Math.min(active.row, table.rows.length - 1), column: Math.min(active.column, table.columns.length - 1) };
  const { imageAt, turn } = useTurns(table);
  const against = againstOf(query, axes);
  const base = placeOfReference(table, imageAt, reference);
  // What the image of a cell is compared with: an image of the reference's row or column, or the reference itself.
  const otherOf = ({ row, column }) => base && imageAt({
    row: against === "column" ? row : base.row, column: against === "row" ? column : base.column,
  });
  const zoom = useZoom(root, {
    target: ".compare-frame",
    // Elsewhere the wheel scrolls the grid.
    wheelTarget: (event, frame) => frame.closest(".is-active") !== null,
    onChange: setScale,
  });
  const current = imageAt(place);
  useCompareKeys({
    table, current, images: shown, zoom, setActive, turn: (step) => turn(place, step), setShowsDifference,
    setReference: () => { setReference(keyOf(current)); announce(`The difference is now taken from ${AGAINST[against].toLowerCase()}.`); },
  });
  const renew = (stale) => rereadImages(stale.request_id).then((read) => {
    const byIndex = new Map(read.map((image) => [image.index, image]));
    setImages((before) => before.map((image) => (image.request_id === stale.request_id ? { ...image, ...byIndex.get(image.index) } : image)));
  }, () => {});
  return html`
    <${Toolbar} images=${images} axes=${axes} query=${query} names=${varying(images)} zoom=${zoom} scale=${scale}
      against=${against} showsDifference=${showsDifference} onDifference=${() => setShowsDifference(!showsDifference)} />
    <div ref=${root} class="compare-root ${showsDifference ? "shows-difference" : ""}">
      <${Table} table=${table} axes=${axes} active=${place} chosen=${active} imageAt=${imageAt} turn=${turn} otherOf=${otherOf} renew=${renew}
        showsDifference=${showsDifference} onActivate=${setActive} />
    </div>
    <p class="compare-count">${countOf(shown.length, "image")}${shown.length < images.length ? ` of ${images.length}` : ""}</p>
    <${ChoiceBar} images=${shown} current=${current} isReference=${current && otherOf(place) === current}
      onReference=${() => setReference(keyOf(current))} />`;
}

// A cell may have several images, of which it shows one: return imageAt(place) and turn(place, step).
function useTurns(table) {
  const [turns, setTurns] = useState({});
  const imageAt = ({ row, column }) => {
    const cell = table.cells[row]?.[column] ?? [];
    return cell[(turns[`${row}/${column}`] ?? 0) % Math.max(1, cell.length)] ?? null;
  };
  const turn = ({ row, column }, step) => {
    const count = table.cells[row][column].length;
    setTurns({ ...turns, [`${row}/${column}`]: ((turns[`${row}/${column}`] ?? 0) + step + count) % count });
  };
  return { imageAt, turn };
}
