"""Check and store the reference images of a submit before its job is accepted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

from shared.errors import (
    AdapterNotFound,
    AdapterRefused,
    InvalidRequest,
    ReferenceRefused,
    SourceChanged,
    SourceUnavailable,
)
from shared.job import ReferenceRef
from shared.reference_fetch import ReferenceFetcher
from shared.reference_image import check_image
from shared.reference_source import InlineImage, ReferenceSource, UploadedImage, check_size, parse_reference
from shared.reference_store import ReferenceStore
from shared.request import PromptItem
from shared.settings import ReferencesSettings

# Of one call. A hundred links of 0.3 s each are then fetched in the 30 s that a call has.
_PARALLEL_FETCHES: Final = 4


@dataclass(frozen=True)
class StoredImage:
    """An image that the store holds; `notes` say what may surprise about it."""

    sha256: str
    notes: tuple[str, ...] = ()


class ReferenceIntake:
    """Checks and stores single images; threads share one."""

    def __init__(self, store: ReferenceStore, fetcher: ReferenceFetcher, settings: ReferencesSettings) -> None:
        self._store = store
        self._fetcher = fetcher
        self._max_bytes = settings.max_bytes
        #: Number of different images that one call may name.
        self.max_images = settings.max_images

    def take(self, source: ReferenceSource, *, deadline: float) -> StoredImage:
        """Check an image and store it.

        Args:
            deadline: time on the monotonic clock until which an image is fetched.

        Raises:
            ReferenceRefused: there is no such image, or it cannot be used.
            AdapterNotFound, AdapterRefused, SourceChanged, SourceUnavailable: see `ReferenceFetcher.fetch`.
            StorageUnavailable: the store does not answer.
        """
        match source:
            case UploadedImage():
                return self._take_upload(source)
            case InlineImage():
                data = source.decode(max_bytes=self._max_bytes)
            case _:
                data = self._fetcher.fetch(source, deadline=deadline)
        check_size(len(data), max_bytes=self._max_bytes)
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


class CallReferences:
    """The reference images of one call, each of which is read once, however many prompts and jobs name it."""

    def __init__(self, intake: ReferenceIntake, *, deadline: float) -> None:
        self._intake = intake
        self._deadline = deadline
        self._stored: dict[str, StoredImage] = {}

    def take(self, prompts: Sequence[PromptItem]) -> tuple[list[tuple[ReferenceRef, ...]], list[str]]:
        """Store the images of a job's prompts; return each prompt's references, and warnings about them.

        Raises:
            InvalidRequest: the call has too many different images.
            ReferenceRefused, SourceUnavailable: `field` names the image at fault.
            StorageUnavailable: the store does not answer.
        """
        fields = _first_fields(prompts)
        new = {text: field for text, field in fields.items() if text not in self._stored}
        self._check_count(list(new.values()))
        # Every text before any image is fetched: what is wrong in its form costs no time.
        sources = {text: _parse(text, field) for text, field in new.items()}
        near = {text: source for text, source in sources.items() if isinstance(source, InlineImage | UploadedImage)}
        for text, source in near.items():
            self._stored[text] = self._take(source, new[text])
        self._fetch({text: source for text, source in sources.items() if text not in near}, new)
        references = [
            tuple(ReferenceRef(slot=slot, sha256=self._stored[text].sha256) for slot, _, text in prompt.reference_texts)
            for prompt in prompts
        ]
        return references, self._warnings(fields)

    def _check_count(self, new_fields: Sequence[str]) -> None:
        allowed = self._intake.max_images - len(self._stored)
        if len(new_fields) > allowed:
            raise InvalidRequest(
                f"the call has more than {self._intake.max_images} different reference images; send them in several "
                "jobs, or ask the operator to raise FLUX2_REFERENCES_MAX_IMAGES",
                field=new_fields[allowed],
            )

    def _fetch(self, sources: Mapping[str, ReferenceSource], fields: Mapping[str, str]) -> None:
        if not sources:
            return
        with ThreadPoolExecutor(_PARALLEL_FETCHES, thread_name_prefix="flux2-references") as pool:
            futures = {text: pool.submit(partial(self._take, source, fields[text])) for text, source in sources.items()}
            try:
                for text, future in futures.items():
                    self._stored[text] = future.result()
            except BaseException:
                # Those that run end by the deadline.
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _take(self, source: ReferenceSource, field: str) -> StoredImage:
        with _at(field):
            return self._intake.take(source, deadline=self._deadline)

    def _warnings(self, fields: Mapping[str, str]) -> list[str]:
        """Return one warning of each kind, for the first image that it concerns."""
        first: dict[str, str] = {}
        for text, field in fields.items():
            for note in self._stored[text].notes:
                first.setdefault(note, f"{field} {note}")
        return list(first.values())


def _first_fields(prompts: Sequence[PromptItem]) -> dict[str, str]:
    """Return the JSON path of the first field that holds each different text, in the order of the request."""
    fields: dict[str, str] = {}
    for index, prompt in enumerate(prompts):
        for _, field, text in prompt.reference_texts:
            fields.setdefault(text, f"prompts[{index}].{field}")
    return fields


def _parse(text: str, field: str) -> ReferenceSource:
    with _at(field):
        return parse_reference(text)


@contextmanager
def _at(field: str) -> Iterator[None]:
    """Name the field in errors about its image."""
    try:
        yield
    except (ReferenceRefused, AdapterRefused, AdapterNotFound, SourceChanged) as error:
        raise ReferenceRefused(str(error), field=field) from error
    except SourceUnavailable as error:
        raise SourceUnavailable(str(error), field=field) from error
