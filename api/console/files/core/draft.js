// What the form of "Create" holds. It is kept in this browser for each tenant, so a reload loses nothing.
import { caller } from "./api.js";
import { adapterModeOf, engineOf } from "./image.js";
import { keep, recall } from "./memory.js";
import { go } from "./router.js";
import { effect, signal } from "./ui.js";
import { escapePrompt } from "./wildcards.js";

// Numbers are texts as they were typed; an empty text stands for the model's default.
const EMPTY = {
  model: "",
  prompts: "", // one on each line, with the wildcards of `wildcards.js`
  trigger: "",
  negative: "",
  loras: [], // { path, multiplier, ignore }
  references: [], // { path, name, thumbnail (data URL or ""), width, height, warnings }
  width: "",
  height: "",
  steps: "",
  guidance: "",
  sigmas: "", // noise levels, separated by spaces; only those of an image that is rendered again
  seed: "",
  seedRule: "each", // "each", "same" or "random"
  copies: "1", // images of each prompt
  engine: "",
  adapterMode: "", // "merged" or "live"
  format: "",
  priority: "",
  preset: "",
};

export const draft = signal(EMPTY);

let tenant = null;
effect(() => {
  if (!caller.value || caller.value.tenant === tenant) return;
  tenant = caller.value.tenant;
  draft.value = { ...EMPTY, ...recall("draft") };
});

// `changes` may be a function of what the form holds now.
export function changeDraft(changes) {
  draft.value = { ...draft.value, ...(typeof changes === "function" ? changes(draft.value) : changes) };
  keep("draft", draft.value);
}

export const clearDraft = () => changeDraft({ ...EMPTY, model: draft.value.model });

// Put parameters of an image into the form, and show it. Parameters that are absent leave the form as it is:
//   prompts: [text], exactly as they were rendered
//   loras: [{ path, network_multiplier, ignore }]
//   references: [{ path: "upload:SHA256", name, thumbnail }] or [path], up to three
//   model, width, height, seed, sample_steps, sigmas, guidance_scale, preset, neg, trigger_word, engine,
//   adapter_mode, output_format
export function useAsDraft(parameters) {
  changeDraft(draftOf(parameters));
  go("create");
}

const FIELDS = {
  model: "model", width: "width", height: "height", sample_steps: "steps", guidance_scale: "guidance", neg: "negative",
  trigger_word: "trigger", engine: "engine", adapter_mode: "adapterMode", output_format: "format", preset: "preset",
};

export function draftOf({ prompts, loras, references, seed, ...others }) {
  const changes = {};
  if (prompts) changes.prompts = prompts.map(escapePrompt).join("\n");
  if (loras) {
    changes.loras = loras.map((lora) => ({
      path: lora.path, multiplier: String(lora.network_multiplier ?? 1), ignore: lora.ignore ?? [],
    }));
  }
  if (references) {
    changes.references = references.map((each) => (typeof each === "string" ? { path: each } : each))
      .map((each) => ({ name: each.path, thumbnail: "", width: null, height: null, warnings: [], ...each }));
  }
  if (seed !== undefined && seed !== null) {
    Object.assign(changes, { seed: String(seed), seedRule: "each", copies: "1" });
  }
  // A request has noise levels or a number of steps, never both.
  if (others.sigmas) Object.assign(changes, { sigmas: others.sigmas.join(" "), steps: "" });
  else if (others.sigmas === null || others.sample_steps) changes.sigmas = "";
  for (const [name, field] of Object.entries(FIELDS)) {
    if (others[name] !== undefined && others[name] !== null) changes[field] = String(others[name]);
  }
  return changes;
}

// Return the parameters of a finished image, an `Image` or `ImageLine` of the API, for `useAsDraft`. Its trigger word
// is in its prompt already.
export function parametersOfImage(image, model) {
  return {
    model,
    prompts: [image.prompt],
    trigger_word: "",
    loras: image.adapters.map((adapter) => ({
      path: adapter.path, network_multiplier: adapter.multiplier, ignore: Object.keys(adapter.ignored ?? {}),
    })),
    references: image.references.map(({ sha256 }) => ({ path: `upload:${sha256}`, name: `${sha256.slice(0, 12)}...` })),
    width: image.requested_width ?? image.width,
    height: image.requested_height ?? image.height,
    seed: image.seed,
    // With the values that were used: the preset may give others later. Noise levels are the steps already.
    preset: image.preset ?? "",
    sigmas: image.sigmas ?? null,
    sample_steps: image.sigmas ? "" : image.sample_steps,
    guidance_scale: image.guidance_scale,
    neg: image.neg,
    engine: engineOf(image),
    adapter_mode: adapterModeOf(image) ?? "",
    output_format: image.format,
  };
}
