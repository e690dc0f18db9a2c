"""Adapter files that callers uploaded, in the service's own object store.

An upload is one object, `uploads/NAME/SHA256.safetensors`, and nothing else: its key is its name and its content, so it
appears and disappears in one step, and no record can contradict it. The same bytes under two names are two objects.
Those of a tenant are in a folder of its own, `tenant_uploads/TENANT/NAME/SHA256.safetensors`.
"""

from __future__ import annotations

import hashlib
import re
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

from shared.keys.record import TENANT
from shared.safetensors_header import SUFFIX
from shared.sources.source import UPLOAD_NAME, UploadedFile
from shared.storage import FileStore
from shared.storage.protocol import MAX_PIECES, MIN_PIECE, StoredObject

_FOLDER = "uploads"
#: Not in the same folder: a listing would walk through the uploads of others.
TENANTS_FOLDER = "tenant_uploads"
# Objects that wait for their content address; only an upload that does not state its sha256 needs one.
_UNFINISHED = "unfinished_uploads"
_KEY = re.compile(
    rf"(?:{_FOLDER}|{TENANTS_FOLDER}/({TENANT.pattern}))/({UPLOAD_NAME.pattern})/([0-9a-f]{{64}}){re.escape(SUFFIX)}"
)
_CONTENT_TYPE = "application/octet-stream"
# Fewer requests than with S3's minimum, and still little memory.
_PIECE_BYTES = 8 * 1024**2
# Objects that one request lists; S3 allows no more.
_PAGE = 1000


@dataclass(frozen=True)
class Upload:
    """One uploaded file.

    Attributes:
        uploaded_s: when it was stored last, in seconds since the epoch.
        tenant: whose it is; None for one without an owner.
    """

    name: str
    sha256: str
    size_bytes: int
    uploaded_s: float
    tenant: str | None = None

    @property
    def path(self) -> str:
        """The text that names it in a request."""
        return str(UploadedFile(self.name, self.sha256, self.tenant))


@dataclass(frozen=True)
class UploadPage:
    """Uploads in the store's order; `next_after` is None on the last page."""

    uploads: list[Upload]
    next_after: str | None


class UploadWriter:
    """Stores one file piece by piece, and computes its sha256.

    Attributes:
        piece_bytes: number of bytes of each piece but the last one.
        size_bytes: number of bytes that were written.
    """

    def __init__(
        self, store: FileStore, name: str, *, expected_bytes: int, sha256: str | None, tenant: str | None
    ) -> None:
        """Begin a file.

        Args:
            sha256: the digest that the file will have, if it is known: it is then written in its final place.
            tenant: whose it is.
        """
        self._name = name
        self._tenant = tenant
        place = _key(name, sha256, tenant) if sha256 else f"{_UNFINISHED}/{uuid.uuid4().hex}"
        self._store = store
        self._writer = store.open_writer(place, content_type=_CONTENT_TYPE)
        self._digest = hashlib.sha256()
        # A server that stops abandons the thread of a call, which goes on while another one aborts.
        self._lock = threading.Lock()
        self.piece_bytes = max(_PIECE_BYTES, MIN_PIECE, -(-expected_bytes // MAX_PIECES))
        self.size_bytes = 0

    @property
    def sha256(self) -> str:
        """The digest of what was written."""
        return self._digest.hexdigest()

    def write(self, piece: bytes) -> None:
        with self._lock:
            self._digest.update(piece)
            self._writer.write(piece)
            self.size_bytes += len(piece)

    def finish(self) -> tuple[Upload, bool]:
        """Make the file visible; return it, and whether it is new: the same bytes may be there already."""
        key = _key(self._name, self.sha256, self._tenant)
        is_new = self._store.stat(key) is None
        with self._lock:
            self._writer.finish(key)
        stored = self._store.stat(key)
        # Deleted in this moment: the caller sees what was stored, and a job that names it finds nothing.
        uploaded_s = stored.modified_s if stored else 0.0
        return Upload(self._name, self.sha256, self.size_bytes, uploaded_s, self._tenant), is_new

    def abort(self) -> None:
        """Remove what was written, once a call in another thread has ended; after `finish` this does nothing."""
        with self._lock:
            self._writer.abort()


class Uploads:
    """The uploaded files in one store; every method may raise `StorageUnavailable`.

    A `tenant` selects the files of one tenant; None selects those without an owner.
    """

    def __init__(self, store: FileStore) -> None:
        self._store = store

    def begin(self, name: str, *, expected_bytes: int, sha256: str | None, tenant: str | None = None) -> UploadWriter:
        """Begin a file; see `UploadWriter`."""
        return UploadWriter(self._store, name, expected_bytes=expected_bytes, sha256=sha256, tenant=tenant)

    def find(self, name: str, sha256: str | None = None, *, tenant: str | None = None) -> Upload | None:
        """Return the upload with this name and sha256, or None.

        Args:
            sha256: None returns the last upload with the name.
        """
        if sha256:
            found = self._store.stat(_key(name, sha256, tenant))
            return None if found is None else _parse(found)
        # Stores keep whole seconds: of two in the same second, the choice is the same at each call.
        return max(self.versions(name, tenant=tenant), key=lambda each: (each.uploaded_s, each.sha256), default=None)

    def versions(self, name: str, *, tenant: str | None = None) -> Iterator[Upload]:
        """Iterate over the files that were uploaded under a name."""
        after = ""
        while objects := self._store.list_objects(f"{_folder(tenant)}/{name}", after=after, limit=_PAGE):
            yield from _parse_all(objects)
            after = objects[-1].key

    def page(self, *, after: str = "", limit: int, tenant: str | None = None) -> UploadPage:
        """Return up to `limit` uploads that follow the path `after`.

        Args:
            after: `next_after` of the previous page; any other text starts at the first upload.
        """
        name, _, sha256 = after.removeprefix("upload:").rpartition("/")[2].partition("@")
        key = _key(name, sha256, tenant)
        place = key if _KEY.fullmatch(key) else ""
        while objects := self._store.list_objects(_folder(tenant), after=place, limit=limit):
            uploads = list(_parse_all(objects))
            if uploads:
                return UploadPage(uploads, uploads[-1].path if len(objects) == limit else None)
            # Something else put these objects there; the uploads may follow.
            place = objects[-1].key
        return UploadPage([], None)

    def delete(self, upload: Upload) -> None:
        """Delete a file; a repeat changes nothing."""
        self._store.delete(_key(upload.name, upload.sha256, upload.tenant))

    def read(self, upload: Upload, start: int, end: int) -> bytes:
        """Read bytes of a file; raises `ObjectMissing` if it was deleted."""
        return self._store.read(_key(upload.name, upload.sha256, upload.tenant), start, end)

    def stream(self, upload: Upload, start: int) -> Iterator[bytes]:
        """Iterate over the bytes from `start` to the end; raises `ObjectMissing` if the file was deleted."""
        return self._store.stream(_key(upload.name, upload.sha256, upload.tenant), start)


def _folder(tenant: str | None) -> str:
    return f"{TENANTS_FOLDER}/{tenant}" if tenant else _FOLDER


def _key(name: str, sha256: str, tenant: str | None) -> str:
    return f"{_folder(tenant)}/{name}/{sha256}{SUFFIX}"


def _parse(entry: StoredObject) -> Upload | None:
    """Return the upload that an object is; None for an object that is no upload."""
    match = _KEY.fullmatch(entry.key)
    return match and Upload(match[2], match[3], entry.size_bytes, entry.modified_s, match[1])


def _parse_all(objects: list[StoredObject]) -> Iterator[Upload]:
    return (upload for upload in map(_parse, objects) if upload is not None)
