// Images that are selected for comparing and downloading.
import { keyOf } from "../../core/image.js";
import { signal } from "../../core/ui.js";

// Images by key; they stay selected when the filters change.
export const selection = signal(new Map());

// The image from which Shift selects.
let anchor = null;

export function toggle(image) {
  const next = new Map(selection.value);
  if (!next.delete(keyOf(image))) next.set(keyOf(image), image);
  anchor = image;
  selection.value = next;
}

export function selectAll(images) {
  const next = new Map(selection.value);
  for (const image of images) next.set(keyOf(image), image);
  selection.value = next;
}

// Select the images from the last toggled one to this one.
export function selectTo(image, images) {
  const keys = images.map(keyOf);
  const from = anchor ? keys.indexOf(keyOf(anchor)) : -1;
  const to = keys.indexOf(keyOf(image));
  if (from < 0 || to < 0) toggle(image);
  else selectAll(images.slice(Math.min(from, to), Math.max(from, to) + 1));
}

export function clearSelection() {
  anchor = null;
  selection.value = new Map();
}

// Return a map from each job to the indexes of its selected images.
export function jobsOfSelection(selected) {
  const jobs = new Map();
  for (const { request_id, index } of selected.values()) jobs.set(request_id, [...(jobs.get(request_id) ?? []), index]);
  return jobs;
}
