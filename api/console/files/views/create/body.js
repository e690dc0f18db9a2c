// The request that a draft stands for.
import { REFERENCE_FIELDS } from "../../core/image.js";
import { expandPrompts } from "../../core/wildcards.js";

// What cannot be a number goes on as text, which the schema refuses.
function numberOf(text) {
  const typed = String(text).trim();
  if (!typed) return undefined;
  return Number.isFinite(Number(typed)) ? Number(typed) : typed;
}

const copiesOf = (draft) => Math.max(1, Math.floor(numberOf(draft.copies)) || 1);

// Number of images, without making their prompts: wildcards can stand for millions.
export const imageCount = (draft) => expandPrompts(draft.prompts, 0).count * copiesOf(draft);

// Without a seed, the API counts up from the model's own: the first of the two is left out where it says the same.
function seedOf(draft, model, index, copy) {
  const first = numberOf(draft.seed);
  if (draft.seedRule === "random") return -1;
  if (draft.seedRule === "same") return addTo(first ?? model?.default_seed ?? 0, copy);
  return first === undefined ? undefined : addTo(first, index);
}

const addTo = (first, offset) => (typeof first === "number" && first >= 0 ? first + offset : first);

// Noise levels are the steps already.
const levelsOf = (text) => (text.trim() ? text.trim().split(/[\s,]+/).map(numberOf) : undefined);

// Return the body of POST /v1/inference with at most `limit` images; without fields that have their defaults.
export function bodyOf(draft, model, limit) {
  const copies = copiesOf(draft);
  const { prompts } = expandPrompts(draft.prompts, Math.ceil(limit / copies));
  const references = Object.fromEntries(draft.references.map(({ path }, slot) => [REFERENCE_FIELDS[slot], path]));
  const shared = {
    width: numberOf(draft.width),
    height: numberOf(draft.height),
    sample_steps: numberOf(draft.steps),
    sigmas: levelsOf(draft.sigmas),
    guidance_scale: numberOf(draft.guidance),
    neg: model?.uses_negative_prompt && draft.negative ? draft.negative : undefined,
    ...references,
  };
  const items = prompts.flatMap((prompt, line) => Array.from({ length: copies }, (_, copy) => (
    { prompt, ...shared, seed: seedOf(draft, model, line * copies + copy, copy) })));
  return withoutUndefined({
    model: draft.model || model?.id || "",
    trigger_word: draft.trigger || undefined,
    prompts: items.slice(0, limit).map(withoutUndefined),
    loras: draft.loras.map(({ path, multiplier, ignore }) => withoutUndefined({
      path, network_multiplier: numberOf(multiplier), ignore: ignore?.length ? ignore : undefined,
    })),
    preset: draft.preset || undefined,
    engine: draft.engine || undefined,
    adapter_mode: draft.adapterMode || undefined,
    output_format: draft.format || undefined,
    priority: numberOf(draft.priority),
  });
}

const withoutUndefined = (value) => Object.fromEntries(Object.entries(value).filter(([, each]) => each !== undefined));
