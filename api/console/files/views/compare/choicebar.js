// The chosen image with its rating, and what to do with the best one.
import { may } from "../../core/api.js";
import { parametersOfImage, useAsDraft } from "../../core/draft.js";
import { adapterText, keyOf } from "../../core/image.js";
import { hrefOf } from "../../core/router.js";
import { html, useValue } from "../../core/ui.js";
import { bestOf, exportRatings, pickWinner, rate, ratings, reject } from "./ratings.js";

export function ChoiceBar({ images, current, isReference, onReference }) {
  const all = useValue(ratings);
  const best = bestOf(images, all);
  const hasRatings = images.some((image) => all.has(keyOf(image)));
  return html`
    <div class="compare-choice">
      ${current && html`<${Current} image=${current} images=${images} rating=${all.get(keyOf(current)) ?? {}} isReference=${isReference} onReference=${onReference} />`}
      <span class="compare-best">
        ${hasRatings && html`<button type="button" onClick=${() => exportRatings(images)}>Export ratings</button>`}
        ${may("submit") && html`
          <button type="button" class="primary" disabled=${!best} onClick=${() => useAsDraft(parametersOfImage(best, best.model))}
              title=${best ? `${adapterText(best)}, seed ${best.seed}` : "Rate images, or pick a winner, first"}>
            Continue with the best
          </button>`}
      </span>
    </div>`;
}

function Current({ image, images, rating, isReference, onReference }) {
  return html`
    <span class="compare-current">
      <a href=${hrefOf("gallery", [image.request_id, image.index])} title="All parameters (Enter)">${adapterText(image)} · seed ${image.seed}</a>
      <span class="compare-stars" role="group" aria-label="Rating">
        ${[1, 2, 3, 4, 5].map((value) => html`
          <button type="button" key=${value} class="quiet" aria-label="${value} of 5" aria-pressed=${rating.rating === value} title=${String(value)}
            onClick=${() => rate(image, value)}>${(rating.rating ?? 0) >= value ? "★" : "☆"}</button>`)}
      </span>
      <button type="button" aria-pressed=${Boolean(rating.isRejected)} title="X" onClick=${() => reject(image)}>Reject</button>
      <button type="button" aria-pressed=${Boolean(rating.isWinner)} title="W" onClick=${() => pickWinner(image, images)}>${rating.isWinner ? "Winner" : "Pick as winner"}</button>
      <button type="button" class="quiet" disabled=${isReference} title="Take the difference from here (R)" onClick=${onReference}>Set as reference</button>
    </span>`;
}
