"""Open a file in a repository of the Hugging Face hub, pinned to the commit that its revision names now.

The hub's library asks for the commit, the size and the sha256; the bytes come through the guarded client, because the
hub redirects to other hosts for them.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import urlsplit

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from shared.errors import AdapterNotFound, AdapterRefused, Flux2Error, SourceChanged, SourceUnavailable
from shared.network.guarded_client import GuardedClient
from shared.sources.http_ranges import HttpRanges
from shared.sources.http_remote_file import HttpRemoteFile
from shared.sources.remote_file import Pin
from shared.sources.source import FIELD, HubFile

HUB_HOST: Final = "huggingface.co"
#: Hosts that hold the bytes of the hub's files.
CONTENT_HOSTS: Final = ("*.hf.co", "*.huggingface.co")
TOKEN_HINT: Final = "HF_TOKEN"

# The hub keeps large files by their sha256, and the others by the id of git's object, which is 40 digits.
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
# The base class of all errors of the library's HTTP client, which is another one in its versions 1 and 2.
_HTTP_ERROR: Final[type[Exception]] = HfHubHTTPError.__bases__[0]
# Statuses below 500 that say that the same request may succeed later.
_LATER: Final = (408, 425, 429)


def hub_place() -> tuple[str, int]:
    """Return the host and the port of the hub, or of the mirror that `HF_ENDPOINT` names."""
    parts = urlsplit(constants.ENDPOINT)
    return parts.hostname or "", parts.port or (80 if parts.scheme == "http" else 443)


def open_hub_file(
    client: GuardedClient, source: HubFile, *, token: str | None, download_s: float, pin: Pin | None = None
) -> HttpRemoteFile:
    """Return a file at the pinned commit, or at the commit that its revision names now.

    Args:
        client: must send the token to the hub, and may fetch from `CONTENT_HOSTS`.
        download_s: seconds that `stream` may take for all of it.

    Raises:
        AdapterNotFound: the hub has no such repository, revision or file, or does not show it to this token.
        AdapterRefused: the repository is gated, or the hub's answer has no commit or size.
        SourceChanged: the pinned commit was deleted.
        SourceUnavailable: the hub does not answer, or asks to come back later.
    """
    revision = pin.value if pin else source.revision
    try:
        found = get_hf_file_metadata(
            hf_hub_url(source.repo, source.path, revision=revision), token=token or False, timeout=client.timeout_s
        )
    except HFValidationError as error:
        raise AdapterRefused(f"{source}: {error}", field=FIELD) from error
    except (_HTTP_ERROR, OfflineModeIsEnabled, OSError) as error:
        raise _refusal(source, pin, error) from error
    if found.size is None or not _COMMIT.fullmatch(found.commit_hash or ""):
        # Not the endpoint itself, which may hold a login.
        host, port = hub_place()
        raise AdapterRefused(f"{source}: {host}:{port} does not answer as a hub does; check HF_ENDPOINT")
    commit = found.commit_hash or ""
    return HttpRemoteFile(
        HttpRanges(client, hf_hub_url(source.repo, source.path, revision=commit), str(source), TOKEN_HINT),
        found.size,
        sha256=found.etag if _SHA256.fullmatch(found.etag or "") else None,
        pin=Pin("commit", commit),
        download_s=download_s,
    )


def _refusal(source: HubFile, pin: Pin | None, error: Exception) -> Flux2Error:
    match error:
        case GatedRepoError():
            return AdapterRefused(
                f"{source}: the repository is gated; accept its terms on the hub with the account of the service's "
                f"{TOKEN_HINT}",
                field=FIELD,
            )
        case RepositoryNotFoundError():
            return AdapterNotFound(
                f"{source}: the hub has no repository {source.repo!r}, or it is private; check the name, or set "
                f"{TOKEN_HINT} for the API and the workers",
                field=FIELD,
            )
        case RevisionNotFoundError() | RemoteEntryNotFoundError() if pin is not None:
            return SourceChanged(f"{source}: the commit that the job named was deleted; submit the job again")
        case RevisionNotFoundError():
            return AdapterNotFound(
                f"{source}: {source.repo!r} has no revision {source.revision!r}; use a branch, a tag or a commit",
                field=FIELD,
            )
        case RemoteEntryNotFoundError():
            return AdapterNotFound(
                f"{source}: {source.repo!r} has no file {source.path!r} at {source.revision!r}; check its name on the "
                "page 'Files and versions'",
                field=FIELD,
            )
        case OfflineModeIsEnabled():
            return AdapterRefused(f"{source}: HF_HUB_OFFLINE forbids access to the hub; unset it", field=FIELD)
        case HfHubHTTPError() if error.response.status_code < 500 and error.response.status_code not in _LATER:
            return AdapterRefused(
                f"{source}: the hub answers {error.response.status_code}; check the repository's page and {TOKEN_HINT}",
                field=FIELD,
            )
    return SourceUnavailable(f"{source}: the hub does not answer: {type(error).__name__}; try again later")
