// What the reader thinks of images, kept in this browser for each tenant and job.
import { keep, recall } from "../../core/memory.js";
import { adapterText, keyOf } from "../../core/image.js";
import { saveJson } from "../../pictures/save.js";
import { signal } from "../../core/ui.js";

// { rating: 1 to 5, isRejected, isWinner } by the key of an image; only of jobs that were loaded.
export const ratings = signal(new Map());

const nameOf = (requestId) => `ratings.${requestId}`;

export function loadRatings(requestIds) {
  const all = new Map(ratings.peek());
  for (const id of requestIds) {
    for (const [index, rating] of Object.entries(recall(nameOf(id)) ?? {})) all.set(`${id}/${index}`, rating);
  }
  ratings.value = all;
}

function change(image, changes) {
  const key = keyOf(image);
  const next = { ...ratings.value.get(key), ...changes };
  const given = Object.fromEntries(Object.entries(next).filter(([, value]) => value));
  const all = new Map(ratings.value);
  if (Object.keys(given).length) all.set(key, given);
  else all.delete(key);
  ratings.value = all;
  const ofJob = [...all].filter(([each]) => each.startsWith(`${image.request_id}/`));
  keep(nameOf(image.request_id), ofJob.length ? Object.fromEntries(ofJob.map(([each, value]) => [each.split("/")[1], value])) : null);
}

// The same rating again takes it back.
export function rate(image, rating) {
  change(image, { rating: ratings.value.get(keyOf(image))?.rating === rating ? null : rating, isRejected: false });
}

export function reject(image) {
  change(image, { isRejected: !ratings.value.get(keyOf(image))?.isRejected, isWinner: false });
}

// Of the images that are compared, one wins.
export function pickWinner(image, images) {
  const isWinner = !ratings.value.get(keyOf(image))?.isWinner;
  for (const other of images) if (ratings.value.get(keyOf(other))?.isWinner) change(other, { isWinner: false });
  change(image, { isWinner, isRejected: false });
}

// Return the winner, or else the image with the best rating; null without either.
export function bestOf(images, all) {
  const score = (image) => {
    const { rating = 0, isWinner, isRejected } = all.get(keyOf(image)) ?? {};
    return isWinner ? 6 : isRejected ? 0 : rating;
  };
  return images.reduce((best, image) => (score(image) > (best ? score(best) : 0) ? image : best), null);
}

export function exportRatings(images) {
  const lines = images.filter((image) => ratings.value.has(keyOf(image))).map((image) => {
    const { rating = null, isRejected = false, isWinner = false } = ratings.value.get(keyOf(image));
    const { request_id, index, prompt, seed, width, height, sample_steps, guidance_scale, sha256 } = image;
    return {
      request_id, index, rating, rejected: isRejected, winner: isWinner, prompt, seed, adapters: adapterText(image),
      width, height, sample_steps, guidance_scale, sha256,
    };
  });
  saveJson({ ratings: lines }, "ratings.json");
}
