// The grid: headings that stay in sight, and a cell for each pair of values.
import { adapterText, describeImage, keyOf } from "../../core/image.js";
import { usePicture } from "../../pictures/picture.js";
import { html, useLayoutEffect, useRef, useValue } from "../../core/ui.js";
import { labelOf } from "./dimensions.js";
import { ratings } from "./ratings.js";

// `active` is the chosen place, or the nearest one that the table has.
export function Table({ table, axes, active, chosen, imageAt, turn, otherOf, renew, showsDifference, onActivate }) {
  const grid = useRef(null);
  const activeId = `${active.row}/${active.column}`;
  useFocusFollows(grid, `${chosen.row}/${chosen.column}`);
  const first = table.cells.flat(2)[0];
  const shape = first ? first.width / first.height : 1;
  return html`
    <div ref=${grid} class="compare-scroller">
      <div class="compare-grid" role="grid" aria-label="Images to compare"
          style=${{ "--columns": String(table.columns.length), "--shape": String(shape) }}>
        ${axes.columns && html`
          <div role="row" class="compare-head">
            ${axes.rows && html`<span class="compare-corner" role="columnheader"><span class="visually-hidden">Rows</span></span>`}
            ${table.columns.map((value) => html`<span key=${value} role="columnheader" title=${value}>${labelOf(axes.columns, value)}</span>`)}
          </div>`}
        ${table.rows.map((row, rowNumber) => html`
          <div key=${row} role="row" class="compare-row">
            ${axes.rows && html`<span role="rowheader" title=${row}><span>${labelOf(axes.rows, row)}</span></span>`}
            ${table.columns.map((column, columnNumber) => html`
              <${Cell} key=${column} images=${table.cells[rowNumber][columnNumber]} image=${imageAt({ row: rowNumber, column: columnNumber })}
                isActive=${activeId === `${rowNumber}/${columnNumber}`} other=${otherOf({ row: rowNumber, column: columnNumber })} renew=${renew} showsDifference=${showsDifference}
                onActivate=${() => onActivate({ row: rowNumber, column: columnNumber })}
                onTurn=${() => turn({ row: rowNumber, column: columnNumber }, 1)} />`)}
          </div>`)}
      </div>
    </div>`;
}

// The cell that was chosen last gets the focus, and is brought into sight. Other axes leave the focus where they are chosen.
function useFocusFollows(grid, chosenId) {
  const isFirst = useRef(true);
  // Not later: an effect that waits for a frame would take the focus back to a cell that has been left since.
  useLayoutEffect(() => {
    if (isFirst.current) {
      isFirst.current = false;
      return;
    }
    const cell = grid.current.querySelector(".compare-cell.is-active");
    cell?.focus({ preventScroll: true });
    cell?.scrollIntoView({ block: "nearest", inline: "nearest" });
  }, [chosenId]);
}

function Cell({ images, image, isActive, other, renew, showsDifference, onActivate, onTurn }) {
  const rating = useValue(ratings).get(image && keyOf(image)) ?? {};
  const classes = ["compare-cell", isActive && "is-active", rating.isRejected && "is-rejected", rating.isWinner && "is-winner"];
  return html`
    <div role="gridcell" class=${classes.filter(Boolean).join(" ")} tabindex=${isActive ? 0 : -1} aria-selected=${isActive}
        aria-label=${image ? [describeImage(image), ratingText(rating)].filter(Boolean).join(", ") : "No image"} onFocus=${isActive ? null : onActivate}
        onClick=${onActivate}>
      ${image
        ? html`
          <${Frame} key=${keyOf(image)} image=${image} other=${other} renew=${renew} showsDifference=${showsDifference} />
          <span class="compare-rating" aria-hidden="true">${rating.isWinner ? "Winner " : ""}${rating.isRejected ? "Rejected" : "★".repeat(rating.rating ?? 0)}</span>
          ${showsDifference && image === other && html`<span class="compare-reference">Reference</span>`}
          ${images.length > 1 && html`
            <button type="button" class="compare-turn" tabindex="-1" title="Show the next image of this cell (.)" onClick=${onTurn}>
              ${images.indexOf(image) + 1} / ${images.length}
            </button>`}`
        : html`<span class="compare-none">No image</span>`}
    </div>`;
}

function ratingText({ rating, isRejected, isWinner }) {
  return [isWinner && "winner", isRejected && "rejected", rating && `rated ${rating} of 5`].filter(Boolean).join(", ");
}

function Frame({ image, other, renew, showsDifference }) {
  const { address, attempt, isGone, onError } = usePicture(image, renew, { isWhole: true });
  const isShown = showsDifference && image !== other;
  const isComparable = other && other.width === image.width && other.height === image.height;
  if (isGone) return html`<span class="compare-none">This picture does not load. Its file may have been deleted.</span>`;
  return html`
    <div class="compare-frame" style=${{ aspectRatio: `${image.width} / ${image.height}` }}>
      ${image.thumbnail_url && html`<img class="zoomed compare-preview" src=${image.thumbnail_url} alt="" />`}
      ${address && html`<img key=${attempt} class="zoomed" src=${address} alt="" title=${`${adapterText(image)}, seed ${image.seed}`} onError=${onError} />`}
      ${isShown && isComparable && html`<img class="zoomed compare-other" src=${other.url} alt="" />`}
    </div>
    ${isShown && !isComparable && html`<span class="compare-note">${other ? "Another size: no difference" : "Nothing to compare with"}</span>`}`;
}
