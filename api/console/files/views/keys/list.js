// The API keys, newest first, and what admins do with them.
import { caller, getJson, request, withQuery } from "../../core/api.js";
import { formatTime } from "../../core/format.js";
import { announce, Chip, Confirmation, Problem } from "../../core/parts.js";
import { html, useLoaded, useState, useValue } from "../../core/ui.js";
import { KeyForm } from "./form.js";
import { limitsText } from "./limits.js";
import { MadeKey } from "./made.js";

export function KeyList() {
  const who = useValue(caller);
  const { data, error, isLoading, reload } = useLoaded(({ signal }) => loadAll(signal), [who?.key_id]);
  const [isMaking, setMaking] = useState(false);
  const [revoked, setRevoked] = useState(null);
  return html`
    <section class="keys" aria-busy=${isLoading}>
      <header class="section-head">
        <h2>API keys</h2>
        <button type="button" class="primary" onClick=${() => setMaking(true)}>Make a key</button>
      </header>
      <${MadeKey} />
      ${who?.is_anonymous && html`<p class="banner">There are no keys yet: everybody who reaches this API may use it. From the first key on, every
        call needs one; pages and scripts that are in use then stop until they have it.</p>`}
      <${Problem} error=${error} onRetry=${reload} />
      ${data?.length > 0 && html`<${KeyTable} keys=${data} own=${who?.key_id} onRevoke=${setRevoked} />`}
      ${isMaking && html`<${KeyForm} isFirst=${Boolean(who?.is_anonymous)} onClose=${() => setMaking(false)} onMade=${() => { setMaking(false); reload(); }} />`}
      ${revoked && html`<${Revocation} line=${revoked} onClose=${() => setRevoked(null)} onDone=${() => { setRevoked(null); reload(); }} />`}
    </section>`;
}

async function loadAll(signal) {
  const lines = [];
  let cursor = null;
  do {
    const page = await getJson(withQuery("/v1/keys", { limit: 200, cursor }), { signal });
    lines.push(...page.data);
    cursor = page.next_cursor;
  } while (cursor);
  return lines.reverse();
}

function KeyTable({ keys, own, onRevoke }) {
  return html`
    <div class="table-scroll" tabindex="0" role="region" aria-label="API keys">
      <table>
        <thead><tr><th>name</th><th>tenant</th><th>roles</th><th>limits</th><th>state</th><th>last used</th><th>expires</th><th>id</th><th><span class="visually-hidden">actions</span></th></tr></thead>
        <tbody>
          ${keys.map((line) => html`
            <tr key=${line.id} class="key is-${line.state}">
              <td>${line.name}${line.id === own && html` <${Chip} kind="accent">in use here<//>`}</td>
              <td>${line.tenant}</td>
              <td>${line.roles.join(", ")}</td>
              <td>${limitsText(line.limits)}</td>
              <td>${line.state}</td>
              <td>${line.used_on ?? "never"}</td>
              <td>${line.expires_at ? formatTime(line.expires_at) : "never"}</td>
              <td><code>${line.id}</code></td>
              <td>${line.state !== "revoked" && line.id !== own && html`
                <button type="button" class="danger" aria-label="Revoke ${line.name}" onClick=${() => onRevoke(line)}>Revoke</button>`}</td>
            </tr>`)}
        </tbody>
      </table>
    </div>`;
}

function Revocation({ line, onClose, onDone }) {
  const revoke = async () => {
    await request(`/v1/keys/${line.id}`, { method: "DELETE" });
    announce(`The key ${line.name} is revoked.`);
    onDone();
  };
  return html`
    <${Confirmation} title="Revoke ${line.name}?" action="Revoke" onConfirm=${revoke} onClose=${onClose}>
      Within three seconds nobody can use it, and it cannot be given back. Its jobs go on.
    <//>`;
}
