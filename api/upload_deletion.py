"""Delete uploaded files that no job needs any more."""

from __future__ import annotations

from api.deps import Services
from api.upload_headers import check_upload_name
from shared.errors import UploadInUse, UploadNotFound
from shared.plurals import counted
from shared.sources.uploads import Upload


def delete_uploads(services: Services, name: str, *, sha256: str | None, tenant: str | None) -> list[Upload]:
    """Delete one version of a tenant's upload, or all; return what was deleted.

    A job that is accepted between the check and the deletion fails its images: their file is not found.

    Raises:
        InvalidRequest: the name has no sound form.
        UploadNotFound: there is no such upload.
        UploadInUse: jobs that have not ended use one of the versions; none was deleted.
    """
    check_upload_name(name)
    uploads = services.uploads
    found = [each for each in uploads.versions(name, tenant=tenant) if sha256 in (None, each.sha256)]
    if not found:
        version = f" with the sha256 {sha256}" if sha256 else ""
        raise UploadNotFound(f"no upload is named {name!r}{version}; `flux2 adapters list` shows all")
    users = services.ledger.upload_users(name, {each.sha256 for each in found}, tenant=tenant)
    if users:
        raise UploadInUse(
            f"{counted(users, 'job that has not ended uses', 'jobs that have not ended use')} {name!r}; delete it when "
            "they have ended, or cancel them"
        )
    for upload in found:
        uploads.delete(upload)
    return found
