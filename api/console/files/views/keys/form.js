// Make a key with the limits of `flux2 keys create`. Errors stand at the field that the API names.
import { sendJson } from "../../core/api.js";
import { Dialog, Problem } from "../../core/parts.js";
import { html, useId, useState } from "../../core/ui.js";
import { keepMadeKey } from "./made.js";
import { LIMITS, LISTS } from "./limits.js";

const ROLES = [
  { name: "submit", text: "submit: create and cancel jobs, upload files" },
  { name: "read", text: "read: follow and list jobs and adapters" },
  { name: "admin", text: "admin: everything, for every tenant, and make keys" },
];

export function KeyForm({ isFirst, onClose, onMade }) {
  const [error, setError] = useState(null);
  const [isBusy, setBusy] = useState(false);
  const submit = async (event) => {
    event.preventDefault();
    setBusy(true);
    try {
      keepMadeKey(await sendJson("POST", "/v1/keys", bodyOf(new FormData(event.target))), { isFirst });
      onMade();
    } catch (failure) {
      setError(failure);
      setBusy(false);
    }
  };
  const problems = Object.fromEntries((error?.fields ?? []).map(({ path, message }) => [path.replace(/\[\d+\]$/, ""), message]));
  const isElsewhere = error && !Object.keys(problems).length;
  return html`
    <${Dialog} title=${isFirst ? "Make the first key" : "Make a key"} onClose=${onClose}>
      <form class="key-form" onSubmit=${submit}>
        ${isFirst && html`<p class="banner">This page goes on with the new key. Every other page, script and client needs a key from then on.</p>`}
        <${Field} label="Name: who or what will use it" name="name" problem=${problems.name} required maxlength="100" autofocus />
        <${Field} label="Tenant" name="tenant" value="default" problem=${problems.tenant} required />
        <fieldset>
          <legend>Roles</legend>
          ${ROLES.map(({ name, text }) => html`
            <label class="check" key=${name}>
              <input type="checkbox" name="roles" value=${name} defaultChecked=${isFirst ? name === "admin" : name !== "admin"} /> ${text}
            </label>`)}
          ${problems.roles && html`<p class="field-error">${problems.roles}</p>`}
        </fieldset>
        <${Field} label="Days until it expires; empty for never" name="expires_in_days" type="number" min="0.001" step="any" problem=${problems.expires_in_days} />
        <details>
          <summary>Limits</summary>
          <div class="key-limits">
            ${LIMITS.map(({ name, label, step = "1" }) => html`
              <${Field} key=${name} label=${label} name=${name} type="number" min="0" step=${step} problem=${problems[`limits.${name}`]} />`)}
            ${LISTS.map(({ name, label }) => html`<${Field} key=${name} label=${label} name=${name} problem=${problems[`limits.${name}`]} />`)}
          </div>
        </details>
        ${isElsewhere && html`<${Problem} error=${error} />`}
        <p class="confirm-buttons">
          <button type="button" onClick=${onClose}>Cancel</button>
          <button class="primary" disabled=${isBusy}>Make the key</button>
        </p>
      </form>
    <//>`;
}

function Field({ label, name, problem, value = "", type = "text", ...others }) {
  const id = useId();
  return html`
    <div>
      <label>${label}
        <input name=${name} type=${type} defaultValue=${value} autocomplete="off" aria-invalid=${problem ? "true" : null}
          aria-describedby=${problem ? id : null} ...${others} />
      </label>
      ${problem && html`<p class="field-error" id=${id}>${problem}</p>`}
    </div>`;
}

function bodyOf(form) {
  const days = form.get("expires_in_days");
  const numbers = LIMITS.map(({ name }) => [name, form.get(name)]).filter(([, text]) => text).map(([name, text]) => [name, Number(text)]);
  const lists = LISTS.map(({ name }) => [name, form.get(name).split(",").map((part) => part.trim()).filter(Boolean)]);
  return {
    name: form.get("name"),
    tenant: form.get("tenant"),
    roles: form.getAll("roles"),
    expires_in_days: days ? Number(days) : null,
    limits: Object.fromEntries([...numbers, ...lists.filter(([, values]) => values.length)]),
  };
}
