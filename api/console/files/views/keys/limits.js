// The limits of a key: the fields of the form, and what a key allows in a few words.
export const LIMITS = [
  { name: "queued_items", label: "Images that may wait", text: (value) => `${value} waiting` },
  { name: "items_per_day", label: "Images in a day", text: (value) => `${value} images a day` },
  { name: "megapixel_steps_per_day", label: "Megapixel-steps in a day", text: (value) => `${value} megapixel-steps a day`, step: "any" },
  { name: "max_megapixels", label: "Megapixels of an image", text: (value) => `${value} megapixels`, step: "any" },
  { name: "max_steps", label: "Steps of an image", text: (value) => `${value} steps` },
];
export const LISTS = [
  { name: "models", label: "Models, with commas between them" },
  { name: "engines", label: "Engines, with commas between them" },
  { name: "adapters", label: "Patterns of adapters, such as team/*" },
];

export function limitsText(limits) {
  if (!limits) return "of a later version";
  const numbers = LIMITS.filter(({ name }) => limits[name] !== null).map(({ name, text }) => text(limits[name]));
  const lists = LISTS.filter(({ name }) => limits[name].length).map(({ name }) => `${name}: ${limits[name].join(", ")}`);
  return [...numbers, ...lists].join("; ") || "none";
}
