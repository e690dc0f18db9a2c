// Delete one version of an upload, after a question.
import { request, withQuery } from "../../core/api.js";
import { adapterName } from "../../core/format.js";
import { announce, Dialog, Problem } from "../../core/parts.js";
import { html, useState } from "../../core/ui.js";

export function DeleteUpload({ path, onClose, onDeleted }) {
  const [error, setError] = useState(null);
  const name = adapterName(path);
  const remove = async () => {
    try {
      // A path that names a tenant, upload:TENANT/NAME@SHA256, is the caller's own.
      const sha256 = path.split("@")[1];
      await request(withQuery(`/v1/adapters/${encodeURIComponent(name)}`, { sha256 }), { method: "DELETE" });
      announce(`${name} is deleted.`);
      onDeleted();
    } catch (failure) {
      setError(failure);
    }
  };
  return html`
    <${Dialog} title="Delete ${name}?" onClose=${onClose}>
      <div class="confirm">
        <p>Jobs can no longer name this version. Images that were made with it stay.</p>
        <${Problem} error=${error} />
        <p class="confirm-buttons">
          <button type="button" onClick=${onClose}>Keep it</button>
          <button type="button" class="danger" onClick=${remove}>Delete</button>
        </p>
      </div>
    <//>`;
}
