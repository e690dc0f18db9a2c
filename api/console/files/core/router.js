// Views by the fragment of the address: `#/gallery?adapter=x`. Every view can be shared, reloaded and gone back to.
import { signal } from "./ui.js";

// A part that is no sound escape, as of an address that was cut off, stands for itself.
function decode(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

function parse() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const [view = "", ...rest] = path.split("/").map(decode);
  return { view: view || "create", rest, query: new URLSearchParams(query) };
}

// { view: "gallery", rest: ["req_1", "0"], query: URLSearchParams }
export const route = signal(parse());
addEventListener("hashchange", () => { route.value = parse(); });

export function hrefOf(view, rest = [], query = {}) {
  const path = [view, ...rest].map(encodeURIComponent).join("/");
  const given = Object.entries(query).filter(([, value]) => value !== undefined && value !== null && value !== "");
  return `#/${path}${given.length ? `?${new URLSearchParams(given)}` : ""}`;
}

export function go(view, rest, query, { replace = false } = {}) {
  const href = hrefOf(view, rest, query);
  if (!replace) { location.hash = href; return; }
  history.replaceState(null, "", href);
  route.value = parse();
}

// Change parameters of the present view; those set to null disappear.
export function setQuery(changes, { replace = true } = {}) {
  const { view, rest, query } = route.value;
  go(view, rest, { ...Object.fromEntries(query), ...changes }, { replace });
}
