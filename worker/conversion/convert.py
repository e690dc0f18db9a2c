"""Read an adapter, change its layout, and write it to another file, completely or not at all."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import safetensors.torch
from torch import Tensor

from shared.adapters.header import read_open_header
from shared.adapters.layout import AdapterLayout, parse_layout
from shared.adapters.opened import open_adapter
from shared.adapters.peft_folder import read_peft_config
from shared.adapters.strength import HEADER_CONFIG, PLAIN_ALPHAS, PLAIN_RANKS
from shared.errors import OutputRefused
from shared.job import AdapterPart
from shared.safetensors_header import METADATA, SUFFIX, read_frame, read_header_bytes
from worker.conversion.factors import Factors, read_factors
from worker.conversion.layouts import write_layout
from worker.conversion.target import TargetLayout

_Number = TypeVar("_Number", int, float)

# What tools read the scale from; the converted file has its scale in the form of its layout.
_SCALE_ENTRIES = (HEADER_CONFIG, *PLAIN_ALPHAS, *PLAIN_RANKS)


@dataclass(frozen=True)
class Conversion:
    """What a conversion wrote.

    Attributes:
        layers: number of layers that the adapter updates.
        scales: distinct scales in the source, ascending.
        stored: distinct scales, other than 1, that the new file stores as alpha; the others are part of its factors.
        ranks: distinct ranks in the new file, ascending.
    """

    kind: str
    layers: int
    scales: tuple[float, ...]
    stored: tuple[float, ...]
    ranks: tuple[int, ...]

    def describe(self) -> str:
        """Return a line for people."""
        text = f"{self.kind} of {self.layers} layers"
        if self.ranks:
            text += f", rank {', '.join(map(str, self.ranks))}"
        if self.scales != (1.0,):
            in_factors = [scale for scale in self.scales if scale not in (1.0, *self.stored)]
            text += f"; scale {_listed(in_factors)} is part of the factors" if in_factors else ""
            text += f"; scale {_listed(self.stored)} is stored as alpha" if self.stored else ""
        return text


def _listed(scales: Sequence[float]) -> str:
    return ", ".join(f"{scale:g}" for scale in scales)


def convert_adapter(
    source: Path,
    destination: Path,
    target: TargetLayout,
    *,
    max_bytes: int,
    overwrite: bool = False,
    ignore: Collection[AdapterPart] = (),
) -> Conversion:
    """Write the adapter at `source` to `destination` in another layout, with the same update.

    Args:
        ignore: parts of the file to leave out.

    Raises:
        AdapterNotFound, AdapterRefused: the source is no usable adapter, or the layout cannot hold its update.
        OutputRefused: the destination exists, or cannot be written.
    """
    _check_destination(destination, overwrite=overwrite)
    layout, stored, metadata = _read(source, max_bytes=max_bytes, ignore=ignore)
    layers: dict[str, list[Factors]] = {}
    for update in layout.updates:
        layers.setdefault(update.layer, []).append(read_factors(update, stored))
    written = write_layout(target, layers)
    kept = {name: value for name, value in metadata.items() if name not in _SCALE_ENTRIES}
    _write(destination, written.tensors, {"format": "pt", **kept, **written.metadata}, overwrite=overwrite)
    scales = {part.scale for parts in layers.values() for part in parts}
    ranks = {tensor.shape[0] for key, tensor in written.tensors.items() if key.endswith(".lora_A.weight")}
    return Conversion(layout.kind, len(layers), _sorted(scales), _sorted(written.scales), _sorted(ranks))


def _sorted(values: Iterable[_Number]) -> tuple[_Number, ...]:
    return tuple(sorted(values))


def _check_destination(file: Path, *, overwrite: bool) -> None:
    if file.suffix.lower() != SUFFIX:
        raise OutputRefused(f"{file} does not end in {SUFFIX}, so no job could name it; choose another name")
    # Unlike pathlib's tests, those of os.path raise no error for a name that is too long.
    if not os.path.isdir(file.parent):
        raise OutputRefused(f"the folder {file.parent} does not exist; create it first")
    if os.path.lexists(file) and not overwrite:
        raise _exists(file)


def _exists(file: Path) -> OutputRefused:
    return OutputRefused(f"{file} exists; choose another name, or replace it with --force")


def _read(
    file: Path, *, max_bytes: int, ignore: Collection[AdapterPart]
) -> tuple[AdapterLayout, dict[str, Tensor], dict[str, str]]:
    """Return the layout, the tensors and the complete metadata of one state of the file."""
    with open_adapter(file) as opened:
        header = read_open_header(opened, max_bytes=max_bytes)
        layout = parse_layout(header, config=read_peft_config(file), ignore=ignore)
        opened.seek(0)
        content = opened.read()
    copy = io.BytesIO(content)
    text = read_header_bytes(copy, read_frame(copy, file_bytes=len(content)))
    metadata = json.loads(text).get(METADATA, {})
    return layout, safetensors.torch.load(content), metadata


def _write(file: Path, tensors: dict[str, Tensor], metadata: dict[str, str], *, overwrite: bool) -> None:
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        try:
            part.touch()
            mode = part.stat().st_mode
            safetensors.torch.save_file(tensors, part, metadata)
            # The library makes files that only their owner can read; workers may run as another user.
            part.chmod(mode)
            with part.open("rb") as opened:
                os.fsync(opened.fileno())
            if overwrite:
                part.replace(file)
            else:
                _rename_to_new(part, file)
        finally:
            part.unlink(missing_ok=True)
    except FileExistsError as error:
        raise _exists(file) from error
    except (OSError, safetensors.SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputRefused(f"cannot write {file}: {reason}; choose another place") from error


def _rename_to_new(part: Path, file: Path) -> None:
    """Rename a file to a name that is free."""
    try:
        # Unlike a rename, a link fails if another process has created the file in the meantime.
        os.link(part, file)
    except FileExistsError:
        raise
    except OSError:
        # The file system has no hard links.
        if os.path.lexists(file):
            raise FileExistsError from None
        part.replace(file)
