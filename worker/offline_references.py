"""Read the reference images of a request file, also those that are files of this host."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Final

from shared.errors import ObjectMissing, ReferenceRefused
from shared.reference_fetch import ReferenceFetcher
from shared.reference_image import check_image
from shared.reference_source import (
    InlineImage,
    LocalImage,
    ReferenceSource,
    UploadedImage,
    check_size,
    parse_reference,
)
from shared.reference_store import ReferenceStore
from shared.request_references import TakenImage
from shared.settings import Settings
from shared.sources.sources import Sources

# Longest text that an error repeats as the name of a file; images are longer.
_MAX_PATH: Final = 100


class OfflineIntake:
    """An `Intake` that keeps images in memory; only uploads need the object store.

    A text may also be the path of a file, relative to the working directory.
    """

    def __init__(self, settings: Settings, sources: Sources) -> None:
        self._settings = settings
        self._sources = sources
        self._fetcher = ReferenceFetcher(settings, sources)
        self._files: dict[str, bytes] = {}

    @property
    def max_images(self) -> int:
        return self._settings.references.max_images

    def load(self, sha256: str) -> bytes:
        """Return the bytes of an image that was taken; see `shared.references.LoadReference`."""
        return self._files[sha256]

    def parse(self, text: str) -> ReferenceSource:
        source = parse_reference(text)
        # Nobody's image in base64 is the name of a file here.
        return LocalImage(text) if isinstance(source, InlineImage) and _is_file(text) else source

    def take(self, source: ReferenceSource, *, deadline: float) -> TakenImage:
        """See `Intake.take`."""
        data = self._read(source, deadline)
        check_size(len(data), max_bytes=self._settings.references.max_bytes)
        checked = check_image(data)
        self._files[checked.sha256] = data
        return TakenImage(checked.sha256, checked.notes)

    def _read(self, source: ReferenceSource, deadline: float) -> bytes:
        max_bytes = self._settings.references.max_bytes
        match source:
            case InlineImage():
                return _decode(source, max_bytes)
            case LocalImage():
                try:
                    check_size(Path(source.path).stat().st_size, max_bytes=max_bytes)
                    return Path(source.path).read_bytes()
                except OSError as error:
                    raise ReferenceRefused(f"{source} cannot be read: {error.strerror}") from error
            case UploadedImage():
                try:
                    return self._store.get(source.sha256)
                except ObjectMissing as error:
                    raise ReferenceRefused(f"the object store has no image {source}; name its file") from error
        return self._fetcher.fetch(source, deadline=deadline)

    @cached_property
    def _store(self) -> ReferenceStore:
        return ReferenceStore(self._sources.own_store)


def _decode(image: InlineImage, max_bytes: int) -> bytes:
    try:
        return image.decode(max_bytes=max_bytes)
    except ReferenceRefused as error:
        if len(image.text) > _MAX_PATH:
            raise
        raise ReferenceRefused(f"there is no file {image.text!r}, and {error}") from error


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # too long for a path, or a NUL
        return False
