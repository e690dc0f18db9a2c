// The requests that this browser sent: with them it can repeat an image that failed or was canceled. The API shows the
// parameters of finished images only.
import { caller, sendJson } from "./api.js";
import { keep, recall } from "./memory.js";
import { inventory, modelOf } from "./models.js";
import { signal } from "./ui.js";

// The id of the job that this tab sent last.
export const lastSent = signal(null);

const MAX_REQUESTS = 40;
const MAX_CHARACTERS = 1_000_000;

// Read once for each tenant, until another tab writes.
let cached = { tenant: null, requests: [] };
addEventListener("storage", () => { cached = { tenant: null, requests: [] }; });

function requests() {
  const tenant = caller.value?.tenant;
  if (cached.tenant !== tenant) cached = { tenant, requests: recall("sent") ?? [] };
  return cached.requests;
}

function remember(requestId, body) {
  const all = [{ id: requestId, body }, ...requests().filter((each) => each.id !== requestId)].slice(0, MAX_REQUESTS);
  while (all.length > 1 && JSON.stringify(all).length > MAX_CHARACTERS) all.pop();
  keep("sent", all);
  cached = { tenant: caller.value?.tenant, requests: all };
}

// Return the body of a job that this browser sent, or null.
export const sentBody = (requestId) => requests().find((each) => each.id === requestId)?.body ?? null;

// Without `crypto.randomUUID`, which browsers offer only to pages from https and loopback.
function newKey() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

// Submit a job. If its answer was lost, the same body is sent again under the same Idempotency-Key, also after a
// reload: the service then answers with the job that it has already.
export async function submitRequest(body) {
  const text = JSON.stringify(body);
  const unanswered = recall("unanswered");
  const key = unanswered?.text === text ? unanswered.key : newKey();
  keep("unanswered", { text, key });
  try {
    const answer = await sendJson("POST", "/v1/inference", body, { headers: { "Idempotency-Key": key } });
    keep("unanswered", null);
    remember(answer.request_id, body);
    lastSent.value = answer.request_id;
    return answer;
  } catch (error) {
    // After a definite refusal nothing is stored; without one, the job may be.
    if (error.status >= 400 && error.status < 500) keep("unanswered", null);
    throw error;
  }
}

// Return the seed of an image of a body; undefined if only the server knows it.
export function seedOf(body, index) {
  const { seed } = body.prompts[index];
  const first = modelOf(inventory.value, body.model)?.default_seed;
  if (seed === undefined) return first === undefined ? undefined : first + index;
  return seed < 0 ? undefined : seed;
}

// Return a body that renders some images of a job again with the seeds that they had; random ones are drawn anew.
export function repeatedBody(body, indexes) {
  const prompts = indexes.map((index) => {
    const prompt = body.prompts[index];
    return { ...prompt, seed: prompt.seed ?? seedOf(body, index) };
  });
  return { ...body, prompts };
}
