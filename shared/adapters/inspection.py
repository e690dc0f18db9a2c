"""Tell what an adapter file is, for a person who wonders why it is refused or what it was trained on.

The file's header is enough; nothing of its tensors is read but for the sha256.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.adapters.header import Header, read_header
from shared.adapters.identity import sha256_of
from shared.adapters.layout import check_fits_base, parse_layout
from shared.errors import RequestError

# BFL's single files keep a linear layer's weight under its path with this suffix.
_WEIGHT = ".weight"


@dataclass(frozen=True)
class Inspection:
    """What is known of a file.

    Attributes:
        refused: why the file cannot be used, or None; what could be found out nevertheless is given.
        kind: e.g. `lora`; None where the layout is not understood.
        dtypes: number of tensors by dtype.
        layers: layers the file updates; `matched` of them exist in the base, which is None without one to compare.
        unmatched: the rest, by name.
    """

    sha256: str
    size_bytes: int
    refused: str | None
    kind: str | None
    ranks: tuple[int, ...]
    dtypes: Mapping[str, int]
    layers: int
    matched: int | None
    unmatched: tuple[str, ...]
    base_model_version: str | None
    name: str | None
    step: int | None
    trigger: str | None


def inspect_adapter(
    path: Path, *, max_bytes: int, layers: Mapping[str, tuple[int, int]] | None = None, model: str | None = None
) -> Inspection:
    """Look at a file.

    Args:
        layers: (out, in) of the base's linear layers, to tell which ones the file matches.
        model: id of the base to hold it to; without `layers` by what the file says of itself.

    Raises:
        AdapterNotFound, AdapterRefused: it is no readable safetensors file at all.
    """
    header = read_header(path, max_bytes=max_bytes)
    kind: str | None = None
    refused: str | None = None
    ranks: tuple[int, ...] = ()
    named: frozenset[str] = frozenset()
    try:
        layout = parse_layout(header)
        kind, ranks, named = layout.kind, layout.ranks, layout.layers
        if model is not None:
            check_fits_base(layout, layers, model=model)
    except RequestError as error:
        refused = str(error)
    return Inspection(
        sha256=sha256_of(path),
        size_bytes=path.stat().st_size,
        refused=refused,
        kind=kind,
        ranks=ranks,
        dtypes=dict(Counter(tensor.dtype for tensor in header.tensors.values())),
        layers=len(named),
        matched=None if layers is None else len(named & layers.keys()),
        unmatched=() if layers is None else tuple(sorted(named - layers.keys())),
        base_model_version=header.metadata.get("ss_base_model_version"),
        name=header.metadata.get("ss_output_name") or header.metadata.get("name"),
        step=_step(header),
        trigger=_trigger(header),
    )


def read_linear_layers(checkpoint: Path, *, max_bytes: int) -> dict[str, tuple[int, int]]:
    """Read the linear layers of a transformer in BFL's single-file layout off its header.

    Raises:
        AdapterRefused: it is no safetensors file.
    """
    tensors = read_header(checkpoint, max_bytes=max_bytes).tensors
    return {
        name.removesuffix(_WEIGHT): (tensor.shape[0], tensor.shape[1])
        for name, tensor in tensors.items()
        if name.endswith(_WEIGHT) and len(tensor.shape) == 2
    }


def _step(header: Header) -> int | None:
    step = _json(header, "training_info").get("step")
    return step if isinstance(step, int) else None


def _trigger(header: Header) -> str | None:
    """The tag that the trainer counted most, which is the trigger word where it kept any."""
    counts: Counter[str] = Counter()
    for folder in _json(header, "ss_tag_frequency").values():
        if isinstance(folder, dict):
            counts.update({tag: count for tag, count in folder.items() if isinstance(count, int)})
    return counts.most_common(1)[0][0] if counts else None


def _json(header: Header, key: str) -> dict[str, Any]:
    try:
        value = json.loads(header.metadata.get(key, "{}"))
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
