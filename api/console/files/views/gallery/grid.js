// All images as justified rows. Only rows near the screen are in the document, so thousands scroll as well as ten.
import { keyOf } from "../../core/image.js";
import { html, useEffect, useLayoutEffect, useMemo, useRef, useState, useValue } from "../../core/ui.js";
import { layOut } from "./layout.js";
import { DayHeading, SectionHeading } from "./headings.js";
import { clearSelection, selectAll, selectTo, selection, toggle } from "./selection.js";
import { Tile, tileId } from "./tile.js";
import { useViewport, useWidth } from "./viewport.js";

const ROW_HEIGHT = { wide: 172, narrow: 116 };
const NARROW_PX = 640;
// More images are read when so much is left below the screen.
const READ_AHEAD_PX = 2500;

// `focusKey` is an image that has just been looked at elsewhere: it gets the focus.
export function Grid({ images, hrefFor, renew, onEnd, focusKey }) {
  const grid = useRef(null);
  const width = useWidth(grid);
  const range = useViewport(grid);
  const selected = useValue(selection);
  const [active, setActive] = useState(null);
  const rowHeight = width < NARROW_PX ? ROW_HEIGHT.narrow : ROW_HEIGHT.wide;
  const layout = useMemo(() => layOut(width ? images : [], { width, rowHeight }), [images, width, rowHeight]);
  const activeKey = layout.placeOf.has(active) ? active : images.length ? keyOf(images[0]) : null;
  useEffect(() => { if (width && range.to > layout.height - READ_AHEAD_PX) onEnd(); }, [range, layout, width]);
  const focus = useFocus(grid, layout, setActive);
  useLayoutEffect(() => { if (focusKey) focus(focusKey); }, [focusKey]);
  const pick = (event, image, { isCheck = false } = {}) => {
    setActive(keyOf(image));
    const isPlain = !event.shiftKey && !event.ctrlKey && !event.metaKey;
    // Once something is selected, a click selects: on a phone there is no other way.
    if (isPlain && !isCheck && !selection.value.size) return;
    event.preventDefault();
    if (event.shiftKey) selectTo(image, images);
    else toggle(image);
  };
  const onKeyDown = (event) => {
    const place = layout.placeOf.get(activeKey);
    if (!place || event.altKey || !event.target.classList.contains("gallery-tile")) return;
    const target = targetOf(event, layout, place, grid.current);
    if (target) {
      event.preventDefault();
      const { image } = target;
      if (event.shiftKey) selectAll([layout.rows[place.row].cells[place.column].image, image]);
      focus(keyOf(image));
      return;
    }
    const image = layout.rows[place.row].cells[place.column].image;
    if (event.key === " ") { event.preventDefault(); if (event.shiftKey) selectTo(image, images); else toggle(image); }
    if (event.key === "a" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); selectAll(images); }
    if (event.key === "Escape" && selection.value.size) { event.preventDefault(); clearSelection(); }
  };
  const activeRow = layout.placeOf.get(activeKey)?.row;
  return html`
    <div ref=${grid} class="gallery-grid" role="grid" aria-label="Images" aria-multiselectable="true"
        aria-rowcount=${layout.rows.length} style=${{ height: `${layout.height}px` }} onKeyDown=${onKeyDown}>
      ${layout.days.filter((day) => day.top < range.to && day.top + day.height > range.from || dayHas(day, activeRow)).map((day) => html`
        <div key=${day.name} class="gallery-day" role="rowgroup" style=${{ top: `${day.top}px`, height: `${day.height}px` }}>
          <${DayHeading} date=${day.date} />
          ${day.entries.filter((entry) => isNear(entry, day, range) || (entry.kind === "row" && entry.number === activeRow)).map((entry) =>
            entry.kind === "section"
              ? html`<${SectionHeading} key=${entry.name} ...${entry} />`
              : html`<${Row} key=${entry.name} row=${entry} selected=${selected} renew=${renew} hrefFor=${hrefFor} onPick=${pick}
                  activeKey=${entry.number === activeRow ? activeKey : null} />`)}
        </div>`)}
    </div>`;
}

const isNear = (entry, day, { from, to }) => day.top + entry.top < to && day.top + entry.top + entry.height > from;
const dayHas = (day, number) => day.entries.some((entry) => entry.kind === "row" && entry.number === number);

// A row is drawn again only when something of it has changed.
function Row({ row, selected, activeKey, renew, hrefFor, onPick }) {
  const pick = useRef(onPick);
  pick.current = onPick;
  return useMemo(() => html`
    <div class="gallery-row" role="row" aria-rowindex=${row.number + 1} style=${{ top: `${row.top}px`, height: `${row.height}px` }}>
      ${row.cells.map(({ image, width }, column) => html`
        <${Tile} key=${keyOf(image)} image=${image} width=${width} height=${row.height} column=${column} href=${hrefFor(image)}
          renew=${renew} isActive=${keyOf(image) === activeKey} isSelected=${selected.has(keyOf(image))}
          onPick=${(...values) => pick.current(...values)} />`)}
    </div>`, [row, selected, activeKey, renew, hrefFor]);
}

// Return focus(key): it brings an image to the screen and gives it the focus, both once the images are there.
function useFocus(grid, layout, setActive) {
  const wanted = useRef(null);
  const focusWanted = () => {
    const place = layout.placeOf.get(wanted.current);
    if (!place) {
      // After a reload no image is there yet. One that is not among the first is not waited for.
      if (layout.rows.length) wanted.current = null;
      return;
    }
    // Meanwhile, the reader may have gone on elsewhere.
    const at = document.activeElement;
    const isElsewhere = at && at !== document.body && !grid.current.contains(at);
    const tile = document.getElementById(tileId(wanted.current));
    if (!isElsewhere) scrollToRow(grid.current, layout.rows[place.row]);
    // At once, and once: later it would take the focus from where it has gone since.
    if (tile || isElsewhere) wanted.current = null;
    if (!isElsewhere) tile?.focus({ preventScroll: true });
  };
  useLayoutEffect(focusWanted);
  return (key) => {
    wanted.current = key;
    setActive(key);
    focusWanted();
  };
}

function scrollToRow(grid, row) {
  const top = grid.getBoundingClientRect().top + row.absoluteTop;
  // Below the page's header and the day's heading.
  const first = (document.querySelector(".top")?.offsetHeight ?? 0) + 48;
  if (top < first) scrollBy({ top: top - first, behavior: "instant" });
  else if (top + row.height > innerHeight - 72) scrollBy({ top: top + row.height - innerHeight + 72, behavior: "instant" });
}

// Return the cell to which a key leads, or null.
function targetOf(event, { rows }, { row, column }, grid) {
  const cells = rows[row].cells;
  const inRow = (number) => {
    const target = rows[Math.max(0, Math.min(rows.length - 1, number))];
    return nearestCell(target.cells, centerOf(cells, column));
  };
  const rowsOnScreen = Math.max(1, Math.floor(innerHeight / (rows[row].height + 40)));
  const isCommand = event.ctrlKey || event.metaKey;
  switch (event.key) {
    case "ArrowLeft": return cells[column - 1] ?? rows[row - 1]?.cells.at(-1) ?? null;
    case "ArrowRight": return cells[column + 1] ?? rows[row + 1]?.cells[0] ?? null;
    case "ArrowUp": return row ? inRow(row - 1) : null;
    case "ArrowDown": return row + 1 < rows.length ? inRow(row + 1) : null;
    case "PageUp": return inRow(row - rowsOnScreen);
    case "PageDown": return inRow(row + rowsOnScreen);
    case "Home": return isCommand ? rows[0].cells[0] : cells[0];
    case "End": return isCommand ? rows.at(-1).cells.at(-1) : cells.at(-1);
    default: return null;
  }
}

function centerOf(cells, column) {
  return cells.slice(0, column).reduce((sum, cell) => sum + cell.width, 0) + cells[column].width / 2;
}

function nearestCell(cells, center) {
  const distances = cells.map((_, column) => Math.abs(centerOf(cells, column) - center));
  return cells[distances.indexOf(Math.min(...distances))];
}
