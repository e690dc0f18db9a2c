"""Find the reference images of a request's prompts, take each of them once, and name the field of one at fault."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Protocol

from shared.errors import (
    AdapterNotFound,
    AdapterRefused,
    InvalidRequest,
    ReferenceRefused,
    SourceChanged,
    SourceUnavailable,
)
from shared.job import ReferenceRef
from shared.log_context import in_this_context
from shared.reference_source import InlineImage, LocalImage, ReferenceSource
from shared.request import PromptItem

# Of one call. A hundred links of 1 s each are then fetched in the 30 s that a call has, and the store is asked for a
# hundred uploads in a quarter of the time.
_PARALLEL_FETCHES: Final = 4


@dataclass(frozen=True)
class TakenImage:
    """An image that was checked and is kept; `notes` say what may surprise about it."""

    sha256: str
    notes: tuple[str, ...] = ()


class Intake(Protocol):
    """Checks images and keeps them; threads share one."""

    @property
    def max_images(self) -> int:
        """Number of different images that one call may name."""
        ...

    def parse(self, text: str) -> ReferenceSource:
        """Return where an image is; raises `ReferenceRefused`."""
        ...

    def take(self, source: ReferenceSource, *, deadline: float) -> TakenImage:
        """Check an image and keep it.

        Args:
            deadline: time on the monotonic clock until which an image is fetched.

        Raises:
            ReferenceRefused: there is no such image, or it cannot be used.
            AdapterNotFound, AdapterRefused, SourceChanged, SourceUnavailable: see `ReferenceFetcher.fetch`.
            StorageUnavailable: the store does not answer.
        """
        ...


class RequestReferences:
    """The reference images of one call, each of which is read once, however many prompts and jobs name it."""

    def __init__(self, intake: Intake, *, deadline: float) -> None:
        """Read nothing yet.

        Args:
            deadline: time on the monotonic clock until which images are fetched.
        """
        self._intake = intake
        self._deadline = deadline
        self._taken: dict[str, TakenImage] = {}

    def take(self, prompts: Sequence[PromptItem]) -> tuple[list[tuple[ReferenceRef, ...]], list[str]]:
        """Take the images of a request's prompts; return each prompt's references, and warnings about them.

        Raises:
            InvalidRequest: the call has too many different images.
            ReferenceRefused, SourceUnavailable: `field` names the image at fault.
            StorageUnavailable: see `Intake.take`.
        """
        fields = _first_fields(prompts)
        new = {text: field for text, field in fields.items() if text not in self._taken}
        self._check_count(list(new.values()))
        # Every text before any image is fetched: what is wrong in its form costs no time.
        sources = {text: self._parse(text, field) for text, field in new.items()}
        near = {text: source for text, source in sources.items() if isinstance(source, InlineImage | LocalImage)}
        for text, source in near.items():
            self._taken[text] = self._take(source, new[text])
        self._take_together({text: source for text, source in sources.items() if text not in near}, new)
        references = [
            tuple(ReferenceRef(slot=slot, sha256=self._taken[text].sha256) for slot, _, text in prompt.reference_texts)
            for prompt in prompts
        ]
        return references, self._warnings(fields)

    def _check_count(self, new_fields: Sequence[str]) -> None:
        allowed = self._intake.max_images - len(self._taken)
        if len(new_fields) > allowed:
            raise InvalidRequest(
                f"the call has more than {self._intake.max_images} different reference images; send them in several "
                "jobs, or ask the operator to raise FLUX2_REFERENCES_MAX_IMAGES",
                field=new_fields[allowed],
            )

    def _take_together(self, sources: Mapping[str, ReferenceSource], fields: Mapping[str, str]) -> None:
        if not sources:
            return
        with ThreadPoolExecutor(_PARALLEL_FETCHES, thread_name_prefix="flux2-references") as pool:
            futures = {
                text: pool.submit(in_this_context(self._take), source, fields[text]) for text, source in sources.items()
            }
            try:
                for text, future in futures.items():
                    self._taken[text] = future.result()
            except BaseException:
                # The block waits for those that run, which end by the deadline: the call must keep its turn until then.
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _parse(self, text: str, field: str) -> ReferenceSource:
        with _at(field):
            return self._intake.parse(text)

    def _take(self, source: ReferenceSource, field: str) -> TakenImage:
        with _at(field):
            return self._intake.take(source, deadline=self._deadline)

    def _warnings(self, fields: Mapping[str, str]) -> list[str]:
        """Return one warning of each kind, for the first image that it concerns."""
        first: dict[str, str] = {}
        for text, field in fields.items():
            for note in self._taken[text].notes:
                first.setdefault(note, f"{field} {note}")
        return list(first.values())


def _first_fields(prompts: Sequence[PromptItem]) -> dict[str, str]:
    """Return the JSON path of the first field that holds each different text, in the order of the request."""
    fields: dict[str, str] = {}
    for index, prompt in enumerate(prompts):
        for _, field, text in prompt.reference_texts:
            fields.setdefault(text, f"prompts[{index}].{field}")
    return fields


@contextmanager
def _at(field: str) -> Iterator[None]:
    """Name the field in errors about its image."""
    try:
        yield
    except (ReferenceRefused, AdapterRefused, AdapterNotFound, SourceChanged) as error:
        raise ReferenceRefused(f"{field}: {error}", field=field) from error
    except SourceUnavailable as error:
        raise SourceUnavailable(f"{field}: {error}", field=field) from error
