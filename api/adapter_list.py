"""List the adapter files that jobs can name: those under the adapter root, and then the uploaded ones."""

from __future__ import annotations

from datetime import UTC, datetime

from api.deps import Services
from api.doors.adapters import allows_adapter
from api.doors.caller import Caller
from api.schemas.inventory import AdapterFile, AdapterList
from api.timestamps import format_time
from shared.adapters.listing import list_adapter_files
from shared.errors import StorageUnavailable

# A path under the root that begins like this would be read as the name of an upload.
_UPLOADS = "upload:"


def list_adapters(services: Services, caller: Caller, *, limit: int, cursor: str) -> AdapterList:
    """Return one page of the files that a caller can name; a page may be short if its key allows only some.

    Args:
        cursor: `next_cursor` of the page before; empty for the first page.

    Raises:
        StorageUnavailable: the page has uploaded files only, and their store does not answer.
    """
    if cursor.startswith(_UPLOADS):
        return _list_uploads(services, caller, limit=limit, after=cursor)
    settings = services.settings.adapters
    page = list_adapter_files(settings.root, after=cursor, limit=limit, allow_symlinks=settings.allow_symlinks)
    files = [
        AdapterFile(path=file.path, size_bytes=file.size_bytes, modified_at=_time(file.modified_s))
        for file in page.files
        if allows_adapter(caller, file.path)
    ]
    if page.next_after is not None:
        return AdapterList(data=files, has_more=True, next_cursor=page.next_after)
    try:
        # At least one: only the store knows whether an upload follows.
        rest = _list_uploads(services, caller, limit=max(1, limit - len(files)), after=_UPLOADS)
    except StorageUnavailable:
        if not files:
            raise
        # The files under the root are known; the next page says what is wrong.
        return AdapterList(data=files, has_more=True, next_cursor=_UPLOADS)
    if len(files) == limit and rest.data:
        return AdapterList(data=files, has_more=True, next_cursor=_UPLOADS)
    return AdapterList(data=files + rest.data, has_more=rest.has_more, next_cursor=rest.next_cursor)


def _list_uploads(services: Services, caller: Caller, *, limit: int, after: str) -> AdapterList:
    page = services.uploads.page(after=after, limit=limit, tenant=caller.upload_tenant)
    return AdapterList(
        data=[
            AdapterFile(
                path=upload.path,
                size_bytes=upload.size_bytes,
                modified_at=_time(upload.uploaded_s),
                sha256=upload.sha256,
            )
            for upload in page.uploads
            if allows_adapter(caller, upload.path)
        ],
        has_more=page.next_after is not None,
        next_cursor=page.next_after,
    )


def _time(seconds: float) -> str:
    return format_time(datetime.fromtimestamp(seconds, UTC))
