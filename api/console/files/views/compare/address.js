// What the address says about the grid, and what holds where it says nothing.
import { keyOf } from "../../core/image.js";
import { DIMENSIONS, defaultAxes } from "./dimensions.js";

// Return { rows, columns }, null for an axis that is not used.
export function axesOf(query, images) {
  const proposed = defaultAxes(images);
  const axis = (name) => (query.has(name) ? (DIMENSIONS[query.get(name)] ? query.get(name) : null) : proposed[name]);
  const [rows, columns] = [axis("rows"), axis("columns")];
  return { rows: rows === columns ? null : rows, columns };
}

// Return the images that match the values to which the address holds other dimensions, as in `only-seed=42`.
export function heldImages(query, images) {
  return images.filter((image) => Object.entries(DIMENSIONS).every(([name, { valueOf }]) =>
    !query.has(`only-${name}`) || query.get(`only-${name}`) === valueOf(image)));
}

// Return what the difference is taken from: "cell", "row" or "column" of the reference.
export const againstOf = (query, axes) => query.get("against") ?? defaultAgainst(axes);

// Images of one seed and prompt are alike enough for a difference.
function defaultAgainst({ rows, columns }) {
  const isOfOneNoise = (name) => name === "seed" || name === "prompt" || name === "size";
  return rows && isOfOneNoise(columns) ? "row" : columns && isOfOneNoise(rows) ? "column" : "cell";
}

// Return the place of the image with this key, or else the first place with an image.
export function placeOfReference(table, imageAt, key) {
  const places = table.cells.flatMap((cells, row) => cells.map((_, column) => ({ row, column }))).filter(imageAt);
  return places.find((place) => keyOf(imageAt(place)) === key) ?? places[0] ?? null;
}
