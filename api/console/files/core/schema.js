// The server's own rules for a request, from its OpenAPI document: the page has no copy of a limit.
import { getJson } from "./api.js";
import { signal } from "./ui.js";

// Schemas by name; null before they are loaded, and for a server whose document is switched off. The server's answer
// is then the only validation.
export const schemas = signal(null);

let loading = null;

export function loadSchemas() {
  loading ??= getJson("/openapi.json").then(
    (document) => { schemas.value = document.components.schemas; },
    (error) => { if (error.status !== 404) loading = null; },
  );
  return loading;
}

// Return the schema of a field without its references and without null, e.g. { type: "integer", minimum: 64 }.
export function fieldOf(known, type, field) {
  const found = known?.[type]?.properties?.[field];
  return found ? { ...found, ...resolve(known, found) } : null;
}

function resolve(known, schema) {
  if (schema.$ref) return resolve(known, known[schema.$ref.split("/").pop()]);
  const options = (schema.anyOf ?? []).filter((option) => option.type !== "null");
  return options.length === 1 ? resolve(known, options[0]) : schema;
}

// Return [{ path, message }] for a value that the schema `type` does not allow; paths are those of the API's problems.
export function problemsOf(known, type, value) {
  return known?.[type] ? check(known, known[type], value, "") : [];
}

function check(known, schema, value, path) {
  if (value === null && schema.anyOf?.some((option) => option.type === "null")) return [];
  const rule = resolve(known, schema);
  const problem = (message) => [{ path, message }];
  if (rule.enum && !rule.enum.includes(value)) return problem(`Must be one of: ${rule.enum.join(", ")}.`);
  switch (rule.type) {
    case "object": return checkObject(known, rule, value, path);
    case "array": return [...checkSize(rule, value.length, path), ...checkItems(known, rule, value, path)];
    case "integer":
      return Number.isInteger(value) ? checkNumber(rule, value, path) : problem("Must be a whole number.");
    case "number":
      return Number.isFinite(value) ? checkNumber(rule, value, path) : problem("Must be a number.");
    case "string": return checkText(rule, value, path);
    default: return [];
  }
}

function checkObject(known, rule, value, path) {
  const prefix = path ? `${path}.` : "";
  const missing = (rule.required ?? []).filter((name) => value[name] === undefined);
  const given = Object.entries(value).filter(([, each]) => each !== undefined);
  return [
    ...missing.map((name) => ({ path: `${prefix}${name}`, message: "Is required." })),
    ...given.flatMap(([name, each]) => {
      const schema = rule.properties?.[name];
      if (schema) return check(known, schema, each, `${prefix}${name}`);
      return rule.additionalProperties === false
        ? [{ path: `${prefix}${name}`, message: "This server does not know the field." }] : [];
    }),
  ];
}

function checkItems(known, rule, value, path) {
  return rule.items ? value.flatMap((each, index) => check(known, rule.items, each, `${path}[${index}]`)) : [];
}

function checkSize(rule, size, path) {
  if (size < rule.minItems) return [{ path, message: `Needs at least ${rule.minItems}.` }];
  if (size > rule.maxItems) return [{ path, message: `Has ${size}, but at most ${rule.maxItems} are allowed.` }];
  return [];
}

function checkText(rule, value, path) {
  if (value.length < rule.minLength) return [{ path, message: "Must not be empty." }];
  if (value.length > rule.maxLength) {
    return [{ path, message: `Has ${value.length} characters, but at most ${rule.maxLength} are allowed.` }];
  }
  const isMatch = !rule.pattern || new RegExp(rule.pattern).test(value);
  return isMatch ? [] : [{ path, message: "Has a form that is not allowed." }];
}

function checkNumber(rule, value, path) {
  const message =
    value < rule.minimum ? `Must be at least ${rule.minimum}.`
    : value > rule.maximum ? `Must be at most ${rule.maximum}.`
    : value <= rule.exclusiveMinimum ? `Must be more than ${rule.exclusiveMinimum}.`
    : value >= rule.exclusiveMaximum ? `Must be less than ${rule.exclusiveMaximum}.`
    : "";
  return message ? [{ path, message }] : [];
}
