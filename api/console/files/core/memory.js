// Values that this browser keeps for each tenant.
import { caller } from "./api.js";

const nameOf = (name) => `flux2.${name}.${caller.value?.tenant ?? "default"}`;

export function recall(name) {
  try {
    return JSON.parse(localStorage.getItem(nameOf(name)));
  } catch {
    // Another version of the page wrote it, or the browser keeps nothing for this page.
    return null;
  }
}

export function keep(name, value) {
  try {
    if (value === null) localStorage.removeItem(nameOf(name));
    else localStorage.setItem(nameOf(name), JSON.stringify(value));
  } catch {
    // Full or forbidden: the page works on without it.
  }
}
