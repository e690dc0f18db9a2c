"""Which adapters a caller may name: those that its key allows, and of the uploads its own."""

from __future__ import annotations

import fnmatch
import os
import posixpath
from collections.abc import Sequence
from dataclasses import replace

from api.doors.caller import Caller
from shared.errors import AdapterNotFound, KeyForbids, RequestError
from shared.request import LoraItem
from shared.settings import AdaptersSettings
from shared.sources.source import FIELD, LocalFile, Source, UploadedFile, parse_source


def permitted_source(path: str, caller: Caller, settings: AdaptersSettings) -> Source:
    """Return the source that a caller names, without accessing it.

    An upload without an owner in its text is the caller's own.

    Raises:
        AdapterRefused: no source has this form.
        AdapterNotFound: the upload belongs to another tenant.
        KeyForbids: the caller's key does not allow this adapter.
    """
    source = parse_source(path)
    if isinstance(source, UploadedFile):
        if source.tenant not in (None, caller.tenant):
            # As for one that does not exist.
            raise AdapterNotFound(
                f"{source}: no such upload is here; `flux2 adapters list` shows all, or upload the file again with "
                "`flux2 adapters push`",
                field=FIELD,
            )
        source = replace(source, tenant=caller.upload_tenant)
    text = _path_below(source.path, settings) if isinstance(source, LocalFile) else str(source)
    if not allows_adapter(caller, text):
        allowed = ", ".join(map(repr, caller.limits.adapters))
        raise KeyForbids(
            f"the key {caller.key_id} does not allow the adapter {text[:200]!r}; it allows {allowed}", field=FIELD
        )
    return source


def permitted_loras(loras: Sequence[LoraItem], caller: Caller, settings: AdaptersSettings) -> list[LoraItem]:
    """Return the adapters of a request, with the caller's own uploads under their whole names.

    Raises:
        RequestError, KeyForbids: see `permitted_source`; `field` names the entry of `loras`.
    """
    permitted = []
    for index, lora in enumerate(loras):
        try:
            source = permitted_source(lora.path, caller, settings)
        except (RequestError, KeyForbids) as error:
            error.field = f"loras[{index}].path"
            raise
        is_upload = isinstance(source, UploadedFile)
        permitted.append(lora.model_copy(update={"path": str(source)}) if is_upload else lora)
    return permitted


def allows_adapter(caller: Caller, text: str) -> bool:
    """Return whether the caller's key allows the adapter with this canonical text."""
    patterns = caller.limits.adapters
    return not patterns or any(fnmatch.fnmatchcase(text, pattern) for pattern in patterns)


def _path_below(path: str, settings: AdaptersSettings) -> str:
    """Return the path of a local file relative to the adapter root; `locate_adapter` refuses one with `..`."""
    # Two slashes at the start are another root to `normpath`, and the same to the system.
    named = posixpath.normpath(path).replace("//", "/", 1)
    for root in (os.path.abspath(settings.root), str(settings.root.resolve())):
        if named.startswith(f"{root}/"):
            return named.removeprefix(f"{root}/")
    return named
