// Calls of the HTTP API, with the key of this tab and the sentences of its errors.
import { signal } from "./ui.js";

// Relative to the page, so that a proxy may serve both below a path.
const BASE = new URL("./", document.baseURI);
const KEY_NAME = "flux2.key";

// The key lasts as long as the tab; "remember" keeps it in this browser.
function readKey() {
  return sessionStorage.getItem(KEY_NAME) ?? localStorage.getItem(KEY_NAME) ?? "";
}

// The key of all calls; empty for none.
export const apiKey = signal(readKey());

// Who the API says we are: the answer of GET /v1/caller, or null before it is known.
export const caller = signal(null);

// Whether the API wants a key, or another one than that of this tab.
export const isLocked = signal(false);

// Keep another key; `identify` finds out whether the API knows it.
export function setKey(key, { remember = false } = {}) {
  sessionStorage.removeItem(KEY_NAME);
  localStorage.removeItem(KEY_NAME);
  if (key) (remember ? localStorage : sessionStorage).setItem(KEY_NAME, key);
  apiKey.value = key;
}

// A problem+json answer, or a call that got none (status 0).
export class ApiError extends Error {
  constructor(status, problem) {
    super(problem.detail || problem.title || `The API answered ${status}.`);
    this.name = "ApiError";
    this.status = status;
    this.code = problem.code ?? "";
    // [{ path: "prompts[0].width", message }] for fields that the caller must change.
    this.fields = problem.errors ?? [];
    this.problem = problem;
  }
}

export function addressOf(path) {
  return new URL(path.replace(/^\//, ""), BASE).href;
}

function headersWithKey(headers) {
  const all = new Headers(headers);
  if (apiKey.value) all.set("Authorization", `Bearer ${apiKey.value}`);
  return all;
}

// Fetch a path of the API; throws ApiError unless the answer is a success.
export async function request(path, { method = "GET", headers, body, signal: abort } = {}) {
  let answer;
  try {
    answer = await fetch(addressOf(path), {
      method, body, headers: headersWithKey(headers), signal: abort, credentials: "same-origin", cache: "no-store",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, { detail: "The API does not answer. Nothing that it accepted is lost; try again in a moment." });
  }
  if (answer.ok) return answer;
  if (answer.status === 401) isLocked.value = true;
  throw new ApiError(answer.status, await answer.json().catch(() => ({ title: answer.statusText })));
}

export async function getJson(path, options) {
  return (await request(path, options)).json();
}

export async function sendJson(method, path, value, { headers, ...options } = {}) {
  const all = { ...headers, "Content-Type": "application/json" };
  const answer = await request(path, { ...options, method, headers: all, body: JSON.stringify(value) });
  return answer.status === 204 ? null : answer.json();
}

// Return `path?name=value` with the parameters that have a value.
export function withQuery(path, parameters) {
  const given = Object.entries(parameters).filter(([, value]) => value !== undefined && value !== null && value !== "");
  return given.length ? `${path}?${new URLSearchParams(given)}` : path;
}

// Learn who we are; a locked API leaves `caller` at null. While the API does not answer, nothing new is known.
export async function identify() {
  try {
    caller.value = await getJson("/v1/caller");
    isLocked.value = false;
  } catch (error) {
    if (error.status !== 401) throw error;
    caller.value = null;
  }
}

export const may = (role) => caller.value?.roles.includes(role) || caller.value?.roles.includes("admin") || false;
