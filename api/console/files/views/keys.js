// For admins: the keys of all tenants, and what they used.
import { KeyList } from "./keys/list.js";
import { Usage } from "./keys/usage.js";
import { html } from "../core/ui.js";

export default function Keys() {
  return html`
    <h1 class="visually-hidden">Keys and usage</h1>
    <${KeyList} />
    <${Usage} />`;
}
