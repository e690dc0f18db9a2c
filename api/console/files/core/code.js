// Texts that send a request: JSON, a command, and a program.
import { addressOf, apiKey } from "./api.js";

export const jsonOf = (body) => JSON.stringify(body, null, 2);

// A command that sends the body. The key stays out of it: the shell takes it from the environment.
export function curlOf(body) {
  const authorization = apiKey.value ? '  -H "Authorization: Bearer $FLUX2_API_KEY" \\\n' : "";
  // The quoted mark keeps the shell from reading anything in the body.
  return `curl -X POST '${addressOf("/v1/inference")}' \\\n${authorization}  -H 'Content-Type: application/json' \\\n`
    + `  --data-binary @- <<'END_OF_BODY'\n${jsonOf(body)}\nEND_OF_BODY\n`;
}

// A program that sends the body with the Python client, and saves its images.
export function pythonOf(body) {
  const key = apiKey.value ? ', api_key=os.environ["FLUX2_API_KEY"]' : "";
  return `${key && "import os\n\n"}from flux2_client import Client

request = ${literalOf(body)}

with Client("${addressOf("").replace(/\/$/, "")}"${key}) as client:
    job = client.submit(request)
    client.wait(job.request_id)
    for image in client.result(job.request_id).images:
        print(image.save(f"{job.request_id}-{image.index}.{image.format}"))
`;
}

const NAMES = new Map([[true, "True"], [false, "False"], [null, "None"]]);

// JSON's strings and numbers are Python's too.
function literalOf(value, indent = "") {
  if (NAMES.has(value)) return NAMES.get(value);
  if (typeof value !== "object") return JSON.stringify(value);
  const inner = `${indent}    `;
  const lines = Array.isArray(value)
    ? value.map((each) => literalOf(each, inner))
    : Object.entries(value).map(([name, each]) => `${JSON.stringify(name)}: ${literalOf(each, inner)}`);
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  return lines.length ? `${open}\n${lines.map((line) => `${inner}${line},\n`).join("")}${indent}${close}` : open + close;
}
