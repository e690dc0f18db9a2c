"use strict";
// Shows the images of a sweep by two of its axes. Everything is in this page: it sends no request.
const sweep = JSON.parse(document.getElementById("sweep").textContent);
const STORE = `flux2-sweep-${sweep.sweep_id}`;
const STARS = 5;
const STEP = 1.5;
const SCALES = { least: 0.1, most: 8 };
const byNumber = new Map(sweep.cells.map((cell) => [cell.number, cell]));
const { ratings, best } = load();
const state = {
  rows: sweep.axes.length > 1 ? 0 : null,
  columns: sweep.axes.length > 1 ? 1 : sweep.axes.length ? 0 : null,
  held: sweep.axes.map(() => 0),
  active: { row: 0, column: 0 },
  zoomed: null,
  scale: null,
  ratings,
  best: byNumber.has(best) ? best : null,
};
let table = [];

const find = (id) => document.getElementById(id);

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

function load() {
  try {
    const stored = JSON.parse(localStorage.getItem(STORE)) ?? {};
    return { ratings: stored.ratings ?? {}, best: stored.best ?? null };
  } catch {
    // A browser may allow no storage to files.
    return { ratings: {}, best: null };
  }
}

function save() {
  try {
    localStorage.setItem(STORE, JSON.stringify({ ratings: state.ratings, best: state.best }));
  } catch {
    announce("This browser stores nothing for files: download best.json before you close the page.");
  }
}

function announce(text) {
  find("said").textContent = text;
}

// A cell without a value on an axis, such as the base model's multiplier, is there for each value.
const fits = (cell, place) => cell.at.every((index, axis) => index === null || place[axis] === index);

function tableOf() {
  const indices = (axis) => (axis === null ? [null] : sweep.axes[axis].labels.map((_, index) => index));
  return indices(state.rows).map((row) => indices(state.columns).map((column) => {
    const place = [...state.held];
    if (row !== null) place[state.rows] = row;
    if (column !== null) place[state.columns] = column;
    return sweep.cells.find((cell) => fits(cell, place)) ?? null;
  }));
}

const labelOf = (axis, index) => (axis === null ? "" : sweep.axes[axis].labels[index]);
const starsOf = (cell) => "★".repeat(state.ratings[cell.number] ?? 0);
const currentCell = () => table[state.active.row]?.[state.active.column] ?? null;

function draw() {
  table = tableOf();
  state.active.row = Math.min(state.active.row, table.length - 1);
  state.active.column = Math.min(state.active.column, table[0].length - 1);
  drawTools();
  drawGrid();
  drawRanking();
}

function drawTools() {
  const axisChoice = (label, name) => {
    const options = sweep.axes.map((axis, index) => make("option", { value: index, selected: state[name] === index }, axis.title));
    options.push(make("option", { value: "", selected: state[name] === null }, "nothing"));
    return choice(label, name, options, (value) => chooseAxis(name, value));
  };
  const heldChoice = (axis, index) => {
    const options = axis.labels.map((label, value) => make("option", { value, selected: state.held[index] === value }, label));
    return choice(axis.title, `held-${index}`, options, (value) => hold(index, Number(value)));
  };
  const held = sweep.axes.map((axis, index) => (index === state.rows || index === state.columns ? null : heldChoice(axis, index)));
  const focused = document.activeElement?.id;
  find("tools").replaceChildren(...[
    sweep.axes.length > 0 ? axisChoice("Rows", "rows") : null,
    sweep.axes.length > 0 ? axisChoice("Columns", "columns") : null,
    sweep.axes.length > 1 ? make("button", { id: "swap", type: "button", onclick: swap }, "Swap rows and columns") : null,
    ...held,
  ].filter(Boolean));
  if (focused) find(focused)?.focus();
}

function choice(label, id, options, onChoice) {
  const select = make("select", { id, onchange: (event) => onChoice(event.target.value) }, ...options);
  return make("div", {}, make("label", { for: id }, label), select);
}

function chooseAxis(name, value) {
  const axis = value === "" ? null : Number(value);
  const other = name === "rows" ? "columns" : "rows";
  if (axis !== null && state[other] === axis) state[other] = state[name];
  state[name] = axis;
  draw();
}

function hold(axis, value) {
  state.held[axis] = value;
  draw();
}

function swap() {
  [state.rows, state.columns] = [state.columns, state.rows];
  state.active = { row: state.active.column, column: state.active.row };
  draw();
}

function drawGrid() {
  const columns = table[0].map((_, column) => make("th", { scope: "col" }, labelOf(state.columns, column)));
  const corner = state.rows === null ? "Images" : sweep.axes[state.rows].title;
  const head = make("thead", {}, make("tr", {}, make("th", { scope: "col" }, corner), ...columns));
  const body = make("tbody", {}, ...table.map((cells, row) => make("tr", {},
    make("th", { scope: "row" }, labelOf(state.rows, row)),
    ...cells.map((cell, column) => drawCell(cell, row, column)))));
  find("grid").replaceChildren(head, body);
}

function drawCell(cell, row, column) {
  const isActive = row === state.active.row && column === state.active.column;
  const common = { role: "gridcell", tabindex: isActive ? 0 : -1, "data-row": row, "data-column": column };
  if (cell === null) return make("td", { ...common, class: "missing" }, "not in the sweep");
  if (!cell.preview) return make("td", { ...common, class: "missing" }, cell.problem);
  const isBest = cell.number === state.best;
  return make("td", { ...common, class: isBest ? "is-best" : null },
    make("img", { src: cell.preview, width: cell.width, height: cell.height, alt: cell.description, loading: "lazy" }),
    drawMarks(cell));
}

function drawMarks(cell) {
  const stars = state.ratings[cell.number] ?? 0;
  return make("div", { class: "marks" },
    stars ? make("span", { role: "img", "aria-label": `${stars} of ${STARS} stars` }, starsOf(cell)) : make("span"),
    cell.number === state.best ? make("span", { class: "best" }, "Best") : null);
}

const elementAt = ({ row, column }) => find("grid").querySelector(`[data-row="${row}"][data-column="${column}"]`);

function activate(place, { focus = true } = {}) {
  elementAt(state.active)?.setAttribute("tabindex", "-1");
  state.active = place;
  const element = elementAt(place);
  element.setAttribute("tabindex", "0");
  if (focus) element.focus();
}

function move(rows, columns) {
  const clamp = (value, count) => Math.max(0, Math.min(count - 1, value));
  const isZoomed = find("zoom").open;
  activate({
    row: clamp(state.active.row + rows, table.length),
    column: clamp(state.active.column + columns, table[0].length),
  }, { focus: !isZoomed });
  if (!isZoomed) return;
  state.zoomed = state.active;
  drawZoom();
}

// Averages over the images of each checkpoint and multiplier, best first.
function ranking() {
  const sums = new Map();
  for (const [number, stars] of Object.entries(state.ratings)) {
    const cell = byNumber.get(Number(number));
    if (!cell || !stars) continue;
    const sum = sums.get(cell.group) ?? { stars: 0, count: 0 };
    sums.set(cell.group, { stars: sum.stars + stars, count: sum.count + 1 });
  }
  return [...sums].map(([group, { stars, count }]) => ({ group, count, average: stars / count }))
    .sort((one, other) => other.average - one.average || other.count - one.count);
}

function drawRanking() {
  const lines = ranking().map(({ group, count, average }) => make("tr", {},
    make("td", {}, group), make("td", {}, average.toFixed(2)), make("td", {}, String(count))));
  find("ranking").replaceChildren(
    make("thead", {}, make("tr", {}, ...["Adapter", "Average", "Rated"].map((title) => make("th", { scope: "col" }, title)))),
    make("tbody", {}, ...lines));
  find("ranking").hidden = !lines.length;
  const picked = byNumber.get(state.best);
  find("picked").textContent = picked ? `Best: ${picked.description}` : "No image is picked as the best yet.";
  find("download").disabled = !picked;
}

function redrawMarks(number) {
  for (const element of find("grid").querySelectorAll("[role=gridcell]")) {
    const cell = table[element.dataset.row][element.dataset.column];
    if (cell?.number !== number || !cell.preview) continue;
    element.querySelector(".marks").replaceWith(drawMarks(cell));
    element.classList.toggle("is-best", number === state.best);
  }
  drawRanking();
  if (find("zoom").open) drawZoom();
}

function rate(cell, stars) {
  if (!cell?.preview) return;
  if (stars) state.ratings[cell.number] = stars;
  else delete state.ratings[cell.number];
  announce(stars ? `${stars} of ${STARS} stars` : "No rating");
  save();
  redrawMarks(cell.number);
}

function pick(cell) {
  if (!cell?.preview) return;
  const before = state.best;
  state.best = before === cell.number ? null : cell.number;
  announce(state.best ? `Picked as the best: ${cell.description}` : "No image is picked.");
  save();
  if (before !== null) redrawMarks(before);
  redrawMarks(cell.number);
}

function download() {
  const text = JSON.stringify({ sweep_id: sweep.sweep_id, best: byNumber.get(state.best).values, ratings: state.ratings }, null, 2);
  const address = URL.createObjectURL(new Blob([`${text}\n`], { type: "application/json" }));
  make("a", { href: address, download: "best.json" }).click();
  URL.revokeObjectURL(address);
}

function openZoom() {
  if (!currentCell()?.preview) return;
  state.scale = null;
  state.zoomed = state.active;
  find("zoom").showModal();
  drawZoom();
}

function drawZoom() {
  const cell = currentCell();
  const image = find("zoomed"), frame = find("frame");
  image.hidden = !cell?.preview;
  if (cell?.preview) {
    image.src = cell.preview;
    image.alt = cell.description;
    image.style.setProperty("--zoomed", `${Math.round(cell.width * (state.scale ?? 1))}px`);
  }
  frame.classList.toggle("fits", state.scale === null);
  const own = cell ? `${cell.description}${cell.details}` : "not in the sweep";
  find("caption").textContent = cell?.preview || !cell ? own : `${cell.description}: ${cell.problem}`;
  find("scale").textContent = state.scale === null ? "fits the window" : `${Math.round(state.scale * 100)} %`;
  find("pick").textContent = cell?.number === state.best ? "Not the best" : "Pick as best";
  find("stars").textContent = cell ? starsOf(cell) || "not rated" : "";
  const original = find("original");
  original.hidden = !cell?.file;
  if (cell?.file) original.href = cell.file;
}

function zoomBy(factor) {
  const cell = currentCell();
  if (!cell?.preview) return;
  const shown = find("zoomed").clientWidth / cell.width;
  state.scale = Math.min(SCALES.most, Math.max(SCALES.least, (state.scale ?? shown) * factor));
  drawZoom();
}

function setScale(scale) {
  state.scale = scale;
  drawZoom();
}

const MOVES = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

function onCellKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (MOVES[event.key]) move(...MOVES[event.key]);
  else if (event.key === "Home") move(0, -table[0].length);
  else if (event.key === "End") move(0, table[0].length);
  else if (/^[0-5]$/.test(event.key)) rate(currentCell(), Number(event.key));
  else if (event.key === "b" || event.key === "B") pick(currentCell());
  else return;
  event.preventDefault();
}

find("grid").addEventListener("keydown", (event) => {
  if (event.key === "Enter" || event.key === " ") {
    event.preventDefault();
    openZoom();
  } else onCellKey(event);
});
const placeOf = (element) => ({ row: Number(element.dataset.row), column: Number(element.dataset.column) });
find("grid").addEventListener("focusin", (event) => {
  if (event.target.role === "gridcell") activate(placeOf(event.target), { focus: false });
});
find("grid").addEventListener("click", (event) => {
  const element = event.target.closest("[role=gridcell]");
  if (!element) return;
  activate(placeOf(element));
  openZoom();
});
find("zoom").addEventListener("keydown", (event) => {
  if (event.key === "+" || event.key === "=") zoomBy(STEP);
  else if (event.key === "-") zoomBy(1 / STEP);
  else onCellKey(event);
});
// The browser gives the focus back to the image that was opened, which need not be the one that was shown last.
find("zoom").addEventListener("close", () => activate(state.zoomed));
for (const [id, action] of Object.entries({
  "close": () => find("zoom").close(),
  "previous": () => move(0, -1),
  "next": () => move(0, 1),
  "zoom-in": () => zoomBy(STEP),
  "zoom-out": () => zoomBy(1 / STEP),
  "fit": () => setScale(null),
  "actual": () => setScale(1),
  "pick": () => pick(currentCell()),
  "download": download,
})) find(id).addEventListener("click", action);
for (const button of document.querySelectorAll("[data-stars]")) {
  button.addEventListener("click", () => rate(currentCell(), Number(button.dataset.stars)));
}
find("side").addEventListener("input", (event) => document.body.style.setProperty("--side", `${event.target.value}px`));
document.body.style.setProperty("--side", `${find("side").value}px`);
draw();
