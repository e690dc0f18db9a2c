// The models that jobs can name, with their defaults, and the limits of one request: GET /v1/models, read once.
import { getJson } from "./api.js";
import { signal } from "./ui.js";

// { models, limits }; null before it is known.
export const inventory = signal(null);

export async function loadModels() {
  inventory.value = await getJson("/v1/models");
  return inventory.value;
}

export const modelOf = (known, id) => known?.models.find((model) => model.id === id) ?? null;
