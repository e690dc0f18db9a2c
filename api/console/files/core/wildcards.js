// Prompts with choices: `{red|blue} fox` stands for two prompts, and groups may hold groups.
//
// Braces without a bar of their own are text, because FLUX.2 also reads prompts that are JSON. A backslash makes text
// of `{`, `}`, `|` and itself, and `\n` is a line break: each line of the form is a prompt of its own.

const ESCAPABLE = "\\{}|n";
// Deeper braces are text, so that no prompt can exhaust the stack.
const MAX_DEPTH = 20;

// Return the parts of a prompt: texts, and lists of choices, each of which is a list of parts.
function parse(text) {
  let at = 0;

  function readParts(depth) {
    const parts = [];
    const add = (part) => {
      if (typeof part === "string" && typeof parts.at(-1) === "string") parts.push(parts.pop() + part);
      else parts.push(part);
    };
    while (at < text.length) {
      const char = text[at];
      if (char === "\\" && at + 1 < text.length && ESCAPABLE.includes(text[at + 1])) {
        add(text[at + 1] === "n" ? "\n" : text[at + 1]);
        at += 2;
      } else if (char === "{" && depth < MAX_DEPTH) {
        readGroup(depth + 1).forEach(add);
      } else if (depth && (char === "|" || char === "}")) {
        return parts;
      } else {
        add(char);
        at += 1;
      }
    }
    return parts;
  }

  function readGroup(depth) {
    at += 1;
    const choices = [readParts(depth)];
    while (text[at] === "|") {
      at += 1;
      choices.push(readParts(depth));
    }
    const isClosed = text[at] === "}";
    if (isClosed) at += 1;
    if (isClosed && choices.length > 1) return [choices];
    const content = choices.flatMap((choice, index) => (index ? ["|", ...choice] : choice));
    return ["{", ...content, ...(isClosed ? ["}"] : [])];
  }

  return readParts(0);
}

function countOf(parts) {
  return parts.reduce((count, part) =>
    count * (typeof part === "string" ? 1 : part.reduce((sum, choice) => sum + countOf(choice), 0)), 1);
}

function* textsOf(parts, from = 0) {
  if (from === parts.length) {
    yield "";
    return;
  }
  for (const head of headsOf(parts[from])) {
    for (const rest of textsOf(parts, from + 1)) yield head + rest;
  }
}

function* headsOf(part) {
  if (typeof part === "string") yield part;
  else for (const choice of part) yield* textsOf(choice);
}

// Return { count, prompts } for a text with a prompt on each line; `prompts` has at most `limit` of them, in order.
export function expandPrompts(text, limit = Infinity) {
  const lines = text.split(/\r?\n/).filter((line) => line.trim()).map(parse);
  const prompts = [];
  for (const parts of lines) {
    for (const prompt of textsOf(parts)) {
      if (prompts.length >= limit) break;
      prompts.push(prompt);
    }
  }
  return { count: lines.reduce((sum, parts) => sum + countOf(parts), 0), prompts };
}

// Return the line that stands for exactly this prompt.
export function escapePrompt(prompt) {
  const text = prompt.replace(/\r\n/g, "\n");
  const { prompts } = expandPrompts(text, 2);
  if (prompts.length === 1 && prompts[0] === text) return text;
  return text.replace(/[\\{}|\n]/g, (char) => (char === "\n" ? "\\n" : `\\${char}`));
}
