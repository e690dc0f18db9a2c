"""Read an uploaded file from the service's own object store, pinned to its sha256."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from shared.errors import AdapterNotFound, ObjectMissing, SourceChanged, SourceUnavailable, StorageUnavailable
from shared.sources.remote_file import Pin
from shared.sources.source import FIELD, UploadedFile
from shared.sources.uploads import Upload, Uploads

# The key of an upload is its digest, so a pin can fail in one way only.
_REMEDY = "upload the file again with `flux2 adapters push`"


@dataclass(frozen=True)
class UploadFile:
    """One uploaded file, as a `RemoteFile`."""

    uploads: Uploads
    upload: Upload

    @property
    def name(self) -> str:
        return self.upload.path

    @property
    def size_bytes(self) -> int:
        return self.upload.size_bytes

    @property
    def sha256(self) -> str:
        return self.upload.sha256

    @property
    def pin(self) -> Pin:
        return Pin("sha256", self.upload.sha256)

    def read(self, start: int, end: int) -> bytes:
        with _errors(self.name):
            data = self.uploads.read(self.upload, start, end)
        if len(data) != end - start:
            raise SourceUnavailable(f"{self.name}: the store gave {len(data)} of {end - start} bytes")
        return data

    def stream(self, start: int) -> Iterator[bytes]:
        done = start
        if start >= self.size_bytes:
            return
        with _errors(self.name):
            for chunk in self.uploads.stream(self.upload, start):
                done += len(chunk)
                yield chunk
        if done != self.size_bytes:
            raise SourceUnavailable(f"{self.name}: the store ended its answer after {done} of {self.size_bytes} bytes")


def open_upload(uploads: Uploads, source: UploadedFile, *, pin: Pin | None = None) -> UploadFile:
    """Return the file that a source names, or that of the pin; without either, the last upload of the name.

    Raises:
        AdapterNotFound: there is no such upload, or it was deleted.
        SourceChanged: the pin is not that of an upload.
        SourceUnavailable: the store does not answer.
    """
    if pin is not None and (pin.kind != "sha256" or source.sha256 not in (None, pin.value)):
        raise SourceChanged(f"{source} is not the file that the job named; submit the job again")
    with _errors(str(source)):
        found = uploads.find(source.name, pin.value if pin else source.sha256, tenant=source.tenant)
    if found is None:
        was_there = " any more" if pin else ""
        raise AdapterNotFound(
            f"{source}: no such upload is here{was_there}; `flux2 adapters list` shows all, or {_REMEDY}", field=FIELD
        )
    return UploadFile(uploads, found)


@contextmanager
def _errors(name: str) -> Iterator[None]:
    """Turn the store's failures into errors about the source."""
    try:
        yield
    except ObjectMissing as error:
        raise AdapterNotFound(f"{name} was deleted; {_REMEDY}", field=FIELD) from error
    except StorageUnavailable as error:
        raise SourceUnavailable(f"{name}: the object store does not answer: {error}") from error
