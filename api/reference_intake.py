"""Check and store the reference images of a submit before its job is accepted."""

from __future__ import annotations

from shared.errors import ReferenceRefused
from shared.reference_fetch import ReferenceFetcher
from shared.reference_image import check_image
from shared.reference_source import InlineImage, LocalImage, ReferenceSource, UploadedImage, check_size, parse_reference
from shared.reference_store import ReferenceStore
from shared.request_references import TakenImage
from shared.settings import ReferencesSettings


class ReferenceIntake:
    """An `Intake` that keeps images in the object store."""

    def __init__(self, store: ReferenceStore, fetcher: ReferenceFetcher, settings: ReferencesSettings) -> None:
        self._store = store
        self._fetcher = fetcher
        self._settings = settings

    def of(self, tenant: str | None) -> ReferenceIntake:
        """Return the intake of a tenant, for which uploads of others do not exist."""
        return ReferenceIntake(self._store.of(tenant), self._fetcher, self._settings)

    @property
    def max_images(self) -> int:
        return self._settings.max_images

    def parse(self, text: str) -> ReferenceSource:
        return parse_reference(text)

    def take(self, source: ReferenceSource, *, deadline: float) -> TakenImage:
        """See `Intake.take`."""
        match source:
            case UploadedImage():
                return self._take_upload(source)
            case LocalImage():
                raise ValueError(f"{source} is a file of the API's host, which `parse` never returns")
            case InlineImage():
                data = source.decode(max_bytes=self._settings.max_bytes)
            case _:
                data = self._fetcher.fetch(source, deadline=deadline)
        check_size(len(data), max_bytes=self._settings.max_bytes)
        checked = check_image(data)
        self._store.put(checked, data)
        return TakenImage(checked.sha256, checked.notes)

    def _take_upload(self, source: UploadedImage) -> TakenImage:
        # Checked when it was uploaded; the worker compares its bytes with the sha256.
        if not self._store.renew(source.sha256):
            raise ReferenceRefused(
                f"no image was uploaded as {source}, or the store deleted it because of its age; upload it again"
            )
        return TakenImage(source.sha256)
