// Server-sent events read with `fetch`, because `EventSource` can send no key in a header.
import { addressOf, apiKey, isLocked } from "./api.js";

const PAUSES_MS = [500, 1000, 2000, 5000, 10000];
// The server sends a comment every 15 s: after this long without one, the connection is dead.
const SILENCE_MS = 40000;

// Follow a stream until `stop()`. `onEvent(name, data)` gets each event with its JSON; `onState` gets "live" or
// "reconnecting". Each connection begins with a snapshot, or goes on after the last event.
export function follow(path, { onEvent, onState = () => {} }) {
  const aborter = new AbortController();
  run(path, { onEvent, onState, signal: aborter.signal });
  return { stop: () => aborter.abort() };
}

async function run(path, { onEvent, onState, signal }) {
  let lastId = "";
  let failures = 0;
  while (!signal.aborted) {
    const attempt = new AbortController();
    const abort = () => attempt.abort();
    signal.addEventListener("abort", abort);
    let watchdog = setTimeout(abort, SILENCE_MS);
    let wasLive = false;
    let endedOrderly = false;
    try {
      const headers = { Accept: "text/event-stream" };
      if (apiKey.value) headers.Authorization = `Bearer ${apiKey.value}`;
      if (lastId) headers["Last-Event-ID"] = lastId;
      const answer = await fetch(addressOf(path), { headers, signal: attempt.signal, cache: "no-store" });
      if (answer.status === 401 || answer.status === 403) {
        if (answer.status === 401) isLocked.value = true;
        onState("closed");
        return;
      }
      // Also 404: during an upgrade, an API of the version before may answer.
      if (!answer.ok) throw new Error(`the event stream answered ${answer.status}`);
      for await (const event of parse(answer.body, () => {
        clearTimeout(watchdog);
        watchdog = setTimeout(abort, SILENCE_MS);
      })) {
        failures = 0;
        wasLive = true;
        onState("live");
        if (event.id) lastId = event.id;
        if (event.name === "end") return;
        if (event.data) onEvent(event.name, JSON.parse(event.data));
      }
      endedOrderly = wasLive;
    } catch {
      // A lost connection, a restart of the API, or silence: the next attempt follows.
    } finally {
      clearTimeout(watchdog);
      signal.removeEventListener("abort", abort);
    }
    if (signal.aborted) return;
    // The server ends each stream after some minutes, to check its key again: no reason to alarm anybody.
    if (!endedOrderly) onState("reconnecting");
    const pause = PAUSES_MS[Math.min(failures++, PAUSES_MS.length - 1)];
    await new Promise((resolve) => setTimeout(resolve, pause * (0.75 + Math.random() / 2)));
  }
}

// Yield { id, name, data } from a body; `onBytes` is called for comments too.
export async function* parse(body, onBytes = () => {}) {
  const decoder = new TextDecoder();
  const reader = body.getReader();
  let rest = "";
  let event = { id: "", name: "message", data: "" };
  while (true) {
    const { value, done } = await reader.read();
    if (done) return;
    onBytes();
    const lines = (rest + decoder.decode(value, { stream: true })).split("\n");
    rest = lines.pop();
    for (const raw of lines) {
      const line = raw.replace(/\r$/, "");
      if (line === "") {
        if (event.data) yield event;
        event = { id: "", name: "message", data: "" };
        continue;
      }
      const colon = line.indexOf(":");
      if (colon === 0) continue;
      const field = colon < 0 ? line : line.slice(0, colon);
      const text = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
      if (field === "id") event.id = text;
      else if (field === "event") event.name = text;
      else if (field === "data") event.data += (event.data ? "\n" : "") + text;
    }
  }
}
