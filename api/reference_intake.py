"""Check and store the reference images of a submit before its job is accepted, of a few submits at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import BoundedSemaphore
from typing import Final

from shared.errors import (
    AdapterNotFound,
    AdapterRefused,
    InvalidRequest,
    ReferenceCheckBusy,
    ReferenceRefused,
    SourceUnavailable,
)
from shared.job import ReferenceRef
from shared.reference_image import check_image
from shared.reference_source import InlineImage, ReferenceSource, UploadedImage, check_size, parse_reference
from shared.reference_store import ReferenceStore
from shared.request import PromptItem
from shared.settings import ReferencesSettings

# Each holds an image of up to `max_bytes`, or waits for the store. The API has 40 threads, which answer polls too.
_MAX_CHECKS: Final = 4
_MAX_WAITING: Final = 12
_MAX_WAIT_S: Final = 5.0


@dataclass(frozen=True)
class StoredImage:
    """An image that the store holds; `notes` say what may surprise about it."""

    sha256: str
    notes: tuple[str, ...] = ()


class ReferenceIntake:
    """Checks and stores images, a few at a time; threads share one."""

    def __init__(self, store: ReferenceStore, settings: ReferencesSettings) -> None:
        self._store = store
        self._settings = settings
        self._checks = BoundedSemaphore(_MAX_CHECKS)
        self._callers = BoundedSemaphore(_MAX_CHECKS + _MAX_WAITING)

    @property
    def max_images(self) -> int:
        """Number of different images that one call may name."""
        return self._settings.max_images

    def take(self, source: ReferenceSource) -> StoredImage:
        """Check an image and store it.

        Raises:
            ReferenceRefused: there is no such image, or it cannot be used.
            StorageUnavailable: the store does not answer.
            ReferenceCheckBusy: other images were checked for the last 5 s, or many wait for it.
        """
        with self._turn():
            match source:
                case UploadedImage():
                    return self._take_upload(source)
                case InlineImage():
                    data = source.decode(max_bytes=self._settings.max_bytes)
                case _:
                    raise ReferenceRefused(f"{source} cannot be fetched")
            check_size(len(data), max_bytes=self._settings.max_bytes)
            checked = check_image(data)
            self._store.put(checked, data)
            return StoredImage(checked.sha256, checked.notes)

    def _take_upload(self, source: UploadedImage) -> StoredImage:
        # Checked when it was uploaded; the worker compares its bytes with the sha256.
        if not self._store.renew(source.sha256):
            raise ReferenceRefused(
                f"no image was uploaded as {source}, or the store deleted it because of its age; upload it again"
            )
        return StoredImage(source.sha256)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Wait until fewer than `_MAX_CHECKS` images are being checked, unless many others wait."""
        if not self._callers.acquire(blocking=False):
            raise ReferenceCheckBusy
        try:
            if not self._checks.acquire(timeout=_MAX_WAIT_S):
                raise ReferenceCheckBusy
            try:
                yield
            finally:
                self._checks.release()
        finally:
            self._callers.release()


class CallReferences:
    """The reference images of one call, each of which is read once, however many prompts and jobs name it."""

    def __init__(self, intake: ReferenceIntake) -> None:
        self._intake = intake
        self._stored: dict[str, StoredImage] = {}

    def take(self, prompts: Sequence[PromptItem]) -> tuple[list[tuple[ReferenceRef, ...]], list[str]]:
        """Store the images of a job's prompts; return each prompt's references, and warnings about them.

        Raises:
            InvalidRequest: the call has too many different images.
            ReferenceRefused, SourceUnavailable: `field` names the image at fault.
            StorageUnavailable, ReferenceCheckBusy: see `ReferenceIntake.take`.
        """
        # By text: an image that many prompts share is one image.
        fields = {
            text: f"prompts[{index}].{field}"
            for index, prompt in reversed(list(enumerate(prompts)))
            for _, field, text in reversed(prompt.reference_texts)
        }
        new = {text: field for text, field in reversed(fields.items()) if text not in self._stored}
        self._check_count(new)
        sources = {text: self._parse(text, field) for text, field in new.items()}
        for text, source in sources.items():
            with _at(new[text]):
                self._stored[text] = self._intake.take(source)
        references = [
            tuple(ReferenceRef(slot=slot, sha256=self._stored[text].sha256) for slot, _, text in prompt.reference_texts)
            for prompt in prompts
        ]
        return references, self._warnings(fields)

    def _check_count(self, new: dict[str, str]) -> None:
        allowed = self._intake.max_images - len(self._stored)
        if len(new) > allowed:
            raise InvalidRequest(
                f"the call has more than {self._intake.max_images} different reference images; send them in several "
                "jobs, or ask the operator to raise FLUX2_REFERENCES_MAX_IMAGES",
                field=list(new.values())[allowed],
            )

    def _parse(self, text: str, field: str) -> ReferenceSource:
        with _at(field):
            return parse_reference(text)

    def _warnings(self, fields: dict[str, str]) -> list[str]:
        """Return one warning of each kind, for the first image that it concerns."""
        first: dict[str, str] = {}
        for text, field in reversed(fields.items()):
            for note in self._stored[text].notes:
                first.setdefault(note, f"{field} {note}")
        return list(first.values())


@contextmanager
def _at(field: str) -> Iterator[None]:
    """Name the field in errors about its image."""
    try:
        yield
    except (ReferenceRefused, AdapterRefused, AdapterNotFound) as error:
        raise ReferenceRefused(str(error), field=field) from error
    except SourceUnavailable as error:
        raise SourceUnavailable(str(error), field=field) from error
