"""Read an adapter file completely and check it completely, before any weight is written.

The API has checked the header when the job was accepted, but the file may have changed since, and only here are the
values seen. The bytes are read into memory: a trainer rewrites its files in place, and a mapped file that shrinks kills
the process.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from shared.adapters.header import read_header
from shared.adapters.identity import sha256_of
from shared.adapters.layout import AdapterLayout, check_fits, describe
from shared.errors import AdapterNotFound, AdapterRefused
from shared.job import AdapterRef


@dataclass(frozen=True)
class Adapter:
    """A checked adapter; `tensors` are the file's, by key, on the device that merges them."""

    ref: AdapterRef
    layout: AdapterLayout
    tensors: dict[str, Tensor]


class AdapterReader:
    """Reads adapters for one base model, and remembers the last ones on the host, checked.

    A rank 32 adapter of every layer is 390 MB, of which reading and checking take longer than merging: items that
    alternate between adapters, or between multipliers of one, pay it once.

    Args:
        model: id in the catalogue.
        layers: (out, in) of the base model's linear layers.
        cache_bytes: of files that are remembered.
    """

    def __init__(
        self, *, model: str, layers: Mapping[str, tuple[int, int]], device: torch.device, cache_bytes: int
    ) -> None:
        self._model = model
        self._layers = layers
        self._device = device
        self._cache_bytes = cache_bytes
        self._checked: OrderedDict[str, Adapter] = OrderedDict()  # by sha256; on the host

    def read(self, ref: AdapterRef, path: Path) -> Adapter:
        """Return the adapter at `path`, which must still be the one that `ref` names.

        Raises:
            AdapterNotFound, AdapterRefused, AdapterMismatch: see `read_adapter`.
        """
        if ref.sha256 not in self._checked:
            host = torch.device("cpu")
            adapter = read_adapter(ref, path, model=self._model, layers=self._layers, device=host)
            self._remember(adapter)
        else:
            _check_identity(ref, path)
            self._checked.move_to_end(ref.sha256)
            adapter = self._checked[ref.sha256]
        return Adapter(ref, adapter.layout, {key: tensor.to(self._device) for key, tensor in adapter.tensors.items()})

    def _remember(self, adapter: Adapter) -> None:
        if adapter.ref.size_bytes > self._cache_bytes:
            return
        self._checked[adapter.ref.sha256] = adapter
        while sum(kept.ref.size_bytes for kept in self._checked.values()) > self._cache_bytes:
            self._checked.popitem(last=False)


def read_adapter(
    ref: AdapterRef, path: Path, *, model: str, layers: Mapping[str, tuple[int, int]], device: torch.device
) -> Adapter:
    """Load the file at `path`, which must still be the one that `ref` names.

    Args:
        model: id in the catalogue.
        layers: (out, in) of the base model's linear layers.

    Raises:
        AdapterNotFound: no file is there any more.
        AdapterRefused: other bytes than when the job was accepted, no adapter for this model, or a value that is not
            finite; the message names the key.
        AdapterMismatch: an update has another shape than its layer.
    """
    _check_identity(ref, path)
    layout = describe(read_header(path, max_bytes=ref.size_bytes))
    check_fits(layout, layers, model=model)
    tensors = _tensors(path)
    _check_identity(ref, path)
    ignored = {key for update in layout.updates for key in update.ignored}
    for key, tensor in tensors.items():
        # LoKr's ignored alpha of 1e10 is infinite in AI Toolkit's float16 files; NaN is damage anywhere.
        sound = ~tensor.float().isnan() if key in ignored else tensor.float().isfinite()
        if not sound.all():
            raise AdapterRefused(f"{key!r} holds a value that is not finite")
    return Adapter(ref, layout, {key: tensor.to(device) for key, tensor in tensors.items()})


def _check_identity(ref: AdapterRef, path: Path) -> None:
    """Cheap when the file is unchanged: digests are remembered by inode, size and times."""
    if sha256_of(path) != ref.sha256:
        raise AdapterRefused(f"{ref.path!r} has changed since the job was accepted; submit again to use the new file")


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(path.read_bytes())
    except FileNotFoundError as error:
        raise AdapterNotFound(f"{path.name}: no such file") from error
    except (OSError, SafetensorError) as error:
        raise AdapterRefused(f"{path.name}: cannot be read: {error}") from error
