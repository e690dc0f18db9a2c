// The key that was made last. It is shown until somebody says that it is kept, because nothing can show it again.
import { identify, setKey } from "../../core/api.js";
import { copyText } from "../../core/parts.js";
import { startFollowing } from "../../core/store.js";
import { html, signal, useState, useValue } from "../../core/ui.js";

// { line, isFirst }; outside of the component, so that it outlasts the view.
const made = signal(null);

// Show a key. The first one also becomes this tab's: without it, the API would refuse the next call.
export function keepMadeKey(line, { isFirst }) {
  made.value = { line, isFirst };
  if (!isFirst) return;
  setKey(line.key);
  identify().then(startFollowing, () => {});
}

export function MadeKey() {
  const shown = useValue(made);
  const [isRemembered, setRemembered] = useState(false);
  if (!shown) return null;
  const { line, isFirst } = shown;
  const remember = () => { setKey(line.key, { remember: true }); setRemembered(true); };
  return html`
    <div class="made-key" role="status">
      <h3>The key ${line.name}</h3>
      <p>It is shown this once. Keep it where its user finds it, such as in FLUX2_API_KEY.</p>
      <p><code class="secret">${line.key}</code></p>
      ${isFirst && html`<p>From now on this API needs a key. This tab uses the new one until it is closed.</p>`}
      <p class="confirm-buttons">
        <button type="button" onClick=${() => copyText(line.key, "The key")}>Copy the key</button>
        ${isFirst && html`<button type="button" disabled=${isRemembered} onClick=${remember}>${isRemembered ? "Remembered" : "Remember it in this browser"}</button>`}
        <button type="button" class="primary" onClick=${() => { made.value = null; }}>I have kept it</button>
      </p>
    </div>`;
}
