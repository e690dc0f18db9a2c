"""Refuse unusable adapters when a job is submitted, from their headers alone.

The worker finds the faults that only the tensors' values show, such as a non-finite number, and fails the item.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shared.adapters.header import read_open_header
from shared.adapters.identity import identify
from shared.adapters.layout import check_fits_base, parse_layout
from shared.adapters.locate import locate_adapter
from shared.adapters.opened import open_adapter
from shared.catalog import Model
from shared.errors import RequestError
from shared.job import AdapterRef
from shared.request import LoraItem
from shared.settings import AdaptersSettings


def validate_adapters(
    loras: Sequence[LoraItem], model: Model, *, layers: Mapping[str, tuple[int, int]] | None, settings: AdaptersSettings
) -> list[AdapterRef]:
    """Return a reference, with the sha256 of the file's bytes, for each adapter of a request.

    Args:
        layers: (out, in) of the base model's linear layers; None checks each file without comparing layers.

    Raises:
        AdapterNotFound, AdapterRefused: `field` names the entry of `loras`, the message the key at fault.
    """
    refs = []
    for index, lora in enumerate(loras):
        try:
            refs.append(_validate(lora, model, layers=layers, settings=settings))
        except RequestError as error:
            error.field = f"loras[{index}].path"
            raise
    return refs


def _validate(
    lora: LoraItem, model: Model, *, layers: Mapping[str, tuple[int, int]] | None, settings: AdaptersSettings
) -> AdapterRef:
    path = locate_adapter(lora.path, root=settings.root, allow_symlinks=settings.allow_symlinks)
    with open_adapter(path) as file:
        layout = parse_layout(read_open_header(file, max_bytes=settings.max_bytes))
        check_fits_base(layout, layers, model=model.id)
        identity = identify(file)
    return AdapterRef(
        # Relative, because a worker's adapter root may be mounted elsewhere.
        path=str(path.relative_to(settings.root.resolve())),
        sha256=identity.sha256,
        size_bytes=identity.size_bytes,
        multiplier=lora.multiplier,
    )
