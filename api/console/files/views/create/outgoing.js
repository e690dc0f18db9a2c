// What the form will send, as JSON and as a command.
import { copyText } from "../../core/parts.js";
import { html, useState } from "../../core/ui.js";
import { curlOf, jsonOf } from "../../core/code.js";

const MAX_SHOWN = 20_000;

const TEXTS = {
  json: { title: "JSON", make: jsonOf, name: "The JSON" },
  curl: { title: "curl", make: curlOf, name: "The command" },
};

export function Outgoing({ body }) {
  const [isOpen, setOpen] = useState(false);
  return html`
    <details class="outgoing" onToggle=${(event) => setOpen(event.currentTarget.open)}>
      <summary>What will be sent</summary>
      ${isOpen && html`<${OutgoingText} body=${body} />`}
    </details>`;
}

function OutgoingText({ body }) {
  const [kind, setKind] = useState("json");
  const text = TEXTS[kind].make(body);
  const shown = text.length > MAX_SHOWN ? `${text.slice(0, MAX_SHOWN)}\n...` : text;
  return html`
    <div class="outgoing-head" role="group" aria-label="Form of the request">
      ${Object.entries(TEXTS).map(([each, { title }]) => html`
        <button type="button" key=${each} class="quiet" aria-pressed=${each === kind}
          onClick=${() => setKind(each)}>${title}</button>`)}
      <button type="button" class="outgoing-copy" onClick=${() => copyText(text, TEXTS[kind].name)}>Copy</button>
    </div>
    <pre tabindex="0" aria-label=${TEXTS[kind].name}>${shown}</pre>`;
}
