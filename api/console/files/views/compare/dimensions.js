// The values by which images differ: each may become the rows or the columns of the grid.
import { adapterName } from "../../core/format.js";

// AI Toolkit ends the names of its checkpoints with nine digits: the training step.
const STEP = /^(.*?)_(\d{9})$/;

const joined = (image, part) => image.adapters.map(part).join(" + ");

function stepOf({ path }) {
  const match = STEP.exec(adapterName(path));
  return match ? String(Number(match[2])) : "final";
}

const familyOf = ({ path }) => adapterName(path).replace(STEP, "$1");

// Of a sweep, that of the checkpoint: its other adapters are the same in all images.
const multiplierOf = (image) =>
  (image.checkpoint ? String(image.multiplier ?? "") : joined(image, ({ multiplier }) => String(multiplier)));

const BASE = "base model";

// `valueOf` gives the text that identifies a value; `labelOf` shows it.
export const DIMENSIONS = {
  checkpoint: { name: "Checkpoint", valueOf: (image) => image.checkpoint ?? "", labelOf: (value) => value || BASE },
  adapter: { name: "Adapter", valueOf: (image) => joined(image, familyOf), labelOf: (value) => value || BASE },
  multiplier: { name: "Multiplier", valueOf: multiplierOf, labelOf: (value) => (value ? `× ${value}` : BASE) },
  step: { name: "Checkpoint step", valueOf: (image) => joined(image, stepOf), labelOf: (value) => (/^\d/.test(value) ? `step ${value}` : value || BASE) },
  prompt: { name: "Prompt", valueOf: (image) => image.prompt ?? "" },
  seed: { name: "Seed", valueOf: (image) => String(image.seed ?? ""), labelOf: (value) => value && `seed ${value}` },
  size: { name: "Size", valueOf: (image) => `${image.width} × ${image.height}` },
  steps: { name: "Steps", valueOf: (image) => String(image.sample_steps ?? ""), labelOf: (value) => value && `${value} steps` },
  noise: {
    name: "Noise levels", valueOf: (image) => image.sigmas?.join(", ") ?? "",
    labelOf: (value) => (value ? `levels ${value}` : "AI Toolkit's levels"),
  },
  preset: { name: "Preset", valueOf: (image) => image.preset ?? "", labelOf: (value) => (value ? `preset ${value}` : "no preset") },
  guidance: { name: "Guidance", valueOf: (image) => String(image.guidance_scale ?? ""), labelOf: (value) => value && `guidance ${value}` },
  engine: { name: "Engine", valueOf: (image) => image.pipeline.engine },
  request: { name: "Job", valueOf: (image) => image.request_id, labelOf: (value) => `job ${value.slice(0, 8)}` },
};

export const labelOf = (name, value) => DIMENSIONS[name].labelOf?.(value) || value || "none";

// Numbers ascending, then texts in the order of the images.
function ordered(values) {
  const rank = (value) => (value === "" ? -Infinity : Number.isNaN(Number(value)) ? Infinity : Number(value));
  return values.map((value, place) => ({ value, place }))
    .sort((one, other) => (rank(one.value) === rank(other.value) ? one.place - other.place : rank(one.value) - rank(other.value)))
    .map(({ value }) => value);
}

export const valuesOf = (images, name) => ordered([...new Set(images.map(DIMENSIONS[name].valueOf))]);

// What the labels of a sweep's checkpoints say already.
const SAID_BY_CHECKPOINT = ["adapter", "step"];

export function varying(images) {
  const names = Object.keys(DIMENSIONS).filter((name) => name !== "request" && valuesOf(images, name).length > 1);
  return names.includes("checkpoint") ? names.filter((name) => !SAID_BY_CHECKPOINT.includes(name)) : names;
}

const COLUMNS_FIRST = ["seed", "multiplier", "prompt"];
// Below this share of cells with an image, a grid says nothing: two of its dimensions change together.
const MIN_FILLED = 0.5;

// Return { rows, columns } for images whose address names none; either may be null.
export function defaultAxes(images) {
  const names = varying(images);
  const columns = COLUMNS_FIRST.find((name) => names.includes(name)) ?? names[0] ?? null;
  const rows = names.find((name) => name !== columns && filledShare(images, name, columns) >= MIN_FILLED) ?? null;
  return rows ? { rows, columns } : { rows, columns: names[0] ?? null };
}

function filledShare(images, rows, columns) {
  const pairs = new Set(images.map((image) => JSON.stringify([rows, columns].map((name) => DIMENSIONS[name].valueOf(image)))));
  return pairs.size / (valuesOf(images, rows).length * valuesOf(images, columns).length);
}

// Return { rows, columns, cells }: values by axis, [null] for an axis that is not used, and images by row and column.
export function tableOf(images, { rows: rowName, columns: columnName }) {
  const axis = (name) => (name ? valuesOf(images, name) : [null]);
  const [rows, columns] = [axis(rowName), axis(columnName)];
  const isAt = (image, name, value) => name === null || DIMENSIONS[name].valueOf(image) === value;
  const cells = rows.map((row) => {
    const inRow = images.filter((image) => isAt(image, rowName, row));
    return columns.map((column) => inRow.filter((image) => isAt(image, columnName, column)));
  });
  return { rows, columns, cells };
}
