// Delete one version of an upload, after a question.
import { request, withQuery } from "../../core/api.js";
import { adapterName } from "../../core/format.js";
import { announce, Confirmation } from "../../core/parts.js";
import { html } from "../../core/ui.js";

export function DeleteUpload({ path, onClose, onDeleted }) {
  const name = adapterName(path);
  const remove = async () => {
    // A path that names a tenant, upload:TENANT/NAME@SHA256, is the caller's own.
    const sha256 = path.split("@")[1];
    await request(withQuery(`/v1/adapters/${encodeURIComponent(name)}`, { sha256 }), { method: "DELETE" });
    announce(`${name} is deleted.`);
    onDeleted();
  };
  return html`
    <${Confirmation} title="Delete ${name}?" action="Delete" onConfirm=${remove} onClose=${onClose}>
      Jobs can no longer name this version. Images that were made with it stay.
    <//>`;
}
