// Problems of a request by the part of the form that can solve them.
import { fieldOf, problemsOf } from "../../core/schema.js";
import { REFERENCE_FIELDS } from "../../core/image.js";

// Fields of the form by those of the request.
const FORM_FIELDS = {
  prompt: "prompts", prompts: "prompts", trigger_word: "trigger", neg: "negative", sample_steps: "steps",
  guidance_scale: "guidance", adapter_mode: "adapterMode", output_format: "format", ctrl_img_1: "references.0",
};
REFERENCE_FIELDS.forEach((name, slot) => { FORM_FIELDS[name] = `references.${slot}`; });

const DRAFT_FIELDS = new Set([
  "model", "prompts", "trigger", "negative", "width", "height", "steps", "guidance", "sigmas", "seed", "preset", "engine",
  "adapterMode", "format", "priority",
]);

// Return { field, text } for a path such as `prompts[3].width`; field is "" for what has no place in the form.
function locate(path, message) {
  const [, list, index, rest] = /^(prompts|loras)\[(\d+)\]\.?(.*)$/.exec(path) ?? [];
  if (list === "loras") return { field: `loras.${index}`, text: message };
  const name = list ? rest || "prompts" : path;
  // The last part of a path such as `sigmas[3]` is of no use to the form.
  const field = FORM_FIELDS[name] ?? name.replace(/\[\d+\]$/, "");
  if (field === "prompts" && list) return { field, text: `Image ${Number(index) + 1}: ${message}` };
  return { field: DRAFT_FIELDS.has(field) || field.startsWith("references.") ? field : "", text: message };
}

// Return the first problem of each part: { width: "Must be at least 64.", "loras.0": ..., "": ... }.
export function problemsByField(problems) {
  const byField = {};
  for (const { path, message } of problems) {
    const { field, text } = locate(path, message);
    byField[field] ??= text;
  }
  return byField;
}

// Check a body before it is sent: the schema's rules, the limits of GET /v1/models, and what this page cannot send. A
// form that is not filled in yet has no problem.
export function checkBody({ body, count, schemas, limits }) {
  const problems = problemsOf(schemas, "InferenceRequest", body)
    .filter(({ path }) => path !== "prompts" && (path !== "model" || body.model));
  if (limits && count > limits.max_prompts) {
    const most = limits.max_prompts.toLocaleString();
    const message = `${count.toLocaleString()} images are too many: a job has at most ${most}.`;
    problems.push({ path: "prompts", message });
  }
  const seeds = body.prompts.map((prompt) => prompt.seed).filter((seed) => typeof seed === "number");
  if (seeds.some((seed) => seed > Number.MAX_SAFE_INTEGER)) {
    const message = `This page sends seeds up to ${Number.MAX_SAFE_INTEGER}; the API takes larger ones.`;
    problems.push({ path: "prompts[0].seed", message });
  }
  return problemsByField(problems);
}

export const choicesOf = (schemas, type, field) => fieldOf(schemas, type, field)?.enum ?? [];
