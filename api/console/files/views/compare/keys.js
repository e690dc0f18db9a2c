// The keys of the grid. Arrows are handled here too, so that they work before the grid has the focus.
import { go } from "../../core/router.js";
import { useKeys } from "../../core/parts.js";
import { useLayoutEffect } from "../../core/ui.js";
import { pickWinner, rate, reject } from "./ratings.js";

export const KEYS = [
  ["Arrows", "walk"], ["1 to 5", "rate"], ["X", "reject"], ["W", "pick the winner"], ["hold D", "difference"],
  ["R", "set the reference"], ["+ − 0", "zoom"], [", .", "other images of a cell"], ["Enter", "all parameters"],
];

export function useCompareKeys({ table, current, images, zoom, setActive, turn, setShowsDifference, setReference }) {
  // From where the step before led, which may not be drawn yet.
  const walk = (rows, columns) => () => setActive((before) => ({
    row: step(before.row, rows, table.rows.length), column: step(before.column, columns, table.columns.length),
  }));
  const withImage = (act) => () => (current ? act(current) : false);
  const ratings = [1, 2, 3, 4, 5].map((rating) => [rating, withImage((image) => rate(image, rating))]);
  useKeys({
    arrowup: walk(-1, 0), arrowdown: walk(1, 0), arrowleft: walk(0, -1), arrowright: walk(0, 1),
    ...Object.fromEntries(ratings),
    x: withImage(reject),
    w: withImage((image) => pickWinner(image, images)),
    r: withImage(setReference),
    ",": withImage(() => turn(-1)),
    ".": withImage(() => turn(1)),
    "+": () => zoom.zoomIn(), "=": () => zoom.zoomIn(), "-": () => zoom.zoomOut(), 0: () => zoom.reset(),
    enter: (event) => (!current || event.target.closest("button, a, summary") ? false : go("gallery", [current.request_id, current.index])),
    d: (event) => { if (!event.repeat) setShowsDifference(true); },
  });
  useLayoutEffect(() => {
    const end = (event) => { if (event.type === "blur" || event.key.toLowerCase() === "d") setShowsDifference(false); };
    addEventListener("keyup", end);
    addEventListener("blur", end);
    return () => { removeEventListener("keyup", end); removeEventListener("blur", end); };
  }, []);
}

// A table that has become smaller may have left the cell outside.
const step = (from, by, count) => Math.min(count - 1, Math.max(0, Math.min(count - 1, from) + by));
