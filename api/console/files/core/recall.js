// All parameters of a finished image, back in the form.
import { parametersOfImage, useAsDraft } from "./draft.js";
import { inventory, loadModels, modelOf } from "./models.js";
import { announce } from "./parts.js";

export async function recallImage(image) {
  try {
    useAsDraft({ ...parametersOfImage(image, image.model), ...await presetOf(image) });
  } catch (error) {
    announce(error.message, { kind: "error" });
  }
}

// The form has noise levels as presets only.
async function presetOf({ model, sigmas }) {
  if (!sigmas) return { preset: "" };
  const presets = modelOf(inventory.value ?? await loadModels(), model)?.presets ?? [];
  const preset = presets.find((each) => JSON.stringify(each.sigmas) === JSON.stringify(sigmas));
  if (preset) return { preset: preset.name, sample_steps: "" };
  announce("This image has noise levels of its own, for which the form has no field. Its recipe has them.", { kind: "error" });
  return { preset: "" };
}
