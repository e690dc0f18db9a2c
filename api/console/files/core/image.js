// An image as the API lists it: its name, what it shows, and the request that renders it again.
import { getJson } from "./api.js";
import { adapterName } from "./format.js";

export const keyOf = (image) => `${image.request_id}/${image.index}`;

// Images of an earlier version have no thumbnail.
export const pictureOf = (image) => image.thumbnail_url ?? image.url;

export const fileNameOf = (image) => `${image.request_id}-${image.index}-${image.seed ?? "image"}.${image.format}`;

// "my_lora 0.8 + other", or "base model".
export function adapterText(image) {
  if (!image.adapters.length) return "base model";
  return image.adapters
    .map(({ path, multiplier }) => (multiplier === 1 ? adapterName(path) : `${adapterName(path)} ${multiplier}`))
    .join(" + ");
}

// The name of an image for people who do not see it.
export function describeImage(image) {
  return [image.prompt ?? "Image without a readable prompt", image.seed !== null && `seed ${image.seed}`, adapterText(image)]
    .filter(Boolean).join(", ");
}

const ENGINES = ["exact", "ai-toolkit", "fast"];

// The engine that a request can name again; undefined for a simulated image.
export const engineOf = ({ pipeline }) => (ENGINES.includes(pipeline.engine) ? pipeline.engine : undefined);

// How the adapters were computed, which a request can ask for again; undefined without adapters.
export const adapterModeOf = ({ adapters, pipeline }) => (adapters.length ? pipeline.adapter_mode : undefined);

// The fields of a prompt that name its reference images.
export const REFERENCE_FIELDS = ["ctrl_img", "ctrl_img_2", "ctrl_img_3"];

const lorasOf = (image) => image.adapters.map(({ path, multiplier, ignored }) => ({
  path,
  network_multiplier: multiplier,
  ...(Object.keys(ignored ?? {}).length && { ignore: Object.keys(ignored) }),
}));

// Return the body of POST /v1/inference that renders the image again.
export function requestOf(image) {
  const prompt = {
    prompt: image.prompt,
    ...(image.neg && { neg: image.neg }),
    width: image.width,
    height: image.height,
    seed: image.seed,
    ...(image.sigmas ? { sigmas: image.sigmas } : { sample_steps: image.sample_steps }),
    guidance_scale: image.guidance_scale,
    ...Object.fromEntries(image.references.map(({ slot, sha256 }) => [REFERENCE_FIELDS[slot - 1], `upload:${sha256}`])),
  };
  return {
    model: image.model,
    prompts: [prompt],
    loras: lorasOf(image),
    ...(image.preset && { preset: image.preset }),
    ...(engineOf(image) && { engine: engineOf(image) }),
    ...(adapterModeOf(image) && { adapter_mode: adapterModeOf(image) }),
    output_format: image.format,
  };
}

// Everything that is known about an image, and the request that renders it again. Addresses are left out: whoever has
// one can fetch the image.
export function recipeOf(image) {
  const { url, url_expires_at, thumbnail_url, ...parameters } = image;
  const references = image.references.map((reference) => ({ ...reference, url: undefined }));
  return { request: requestOf(image), image: { ...parameters, references } };
}

// Read the finished images of one job, in the form of the listing.
export async function readImages(requestId, { signal } = {}) {
  const result = await getJson(`/v1/requests/${encodeURIComponent(requestId)}/result`, { signal });
  const { request_id, created_at, finished_at, metadata } = result;
  return (result.outputs?.images ?? [])
    .map((image) => ({ ...image, request_id, created_at, finished_at, model: metadata.model }));
}

const readings = new Map();

// As `readImages`, but pictures that ask for new addresses at the same time share one call.
export function rereadImages(requestId) {
  if (!readings.has(requestId)) {
    readings.set(requestId, readImages(requestId).finally(() => readings.delete(requestId)));
  }
  return readings.get(requestId);
}

// Addresses are signed anew for each answer. One that still works stays, so that the picture is not loaded again.
export function withFreshAddress(shown, read) {
  return shown && !isExpired(shown) ? { ...read, url: shown.url, url_expires_at: shown.url_expires_at,
    thumbnail_url: shown.thumbnail_url ?? read.thumbnail_url } : read;
}

// Some seconds early: loading takes time.
export const isExpired = (image) => new Date(image.url_expires_at) - Date.now() < 5000;
