"""Read an adapter file completely and check it completely, before any weight is written.

The API has checked the header when the job was accepted, but the file may have changed since, and only here are the
values seen. The bytes are read into memory: a trainer rewrites its files in place, and a mapped file that shrinks kills
the process.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from shared.adapters.header import read_header
from shared.adapters.identity import sha256_of
from shared.adapters.kinds import LayerUpdate
from shared.adapters.layout import AdapterLayout, check_fits_base, parse_layout
from shared.errors import AdapterNotFound, AdapterRefused
from shared.job import AdapterRef
from worker.checkpoint.packing import pack_layout
from worker.checkpoint.pinned import pin


@dataclass(frozen=True)
class Adapter:
    """A checked adapter.

    Attributes:
        tensors: the file's, by key; matrices on the device that merges them, once `AdapterReader` has given it.
        felt: the updates that change a weight. Merging zeros would change the sign of weights that are -0.0.
    """

    ref: AdapterRef
    layout: AdapterLayout
    tensors: dict[str, Tensor]
    felt: tuple[LayerUpdate, ...]


class _Kept:
    """An adapter on the host; for a GPU its tensors lie side by side, and `locked_for` it one copy takes milliseconds.

    The scalars among them, alphas, stay on the host, which computes with them.
    """

    def __init__(self, adapter: Adapter, *, locked_for: torch.device | None) -> None:
        self._scalars = {key: tensor for key, tensor in adapter.tensors.items() if tensor.ndim == 0}
        self._keys = [key for key in adapter.tensors if key not in self._scalars]
        self._places, size = pack_layout(adapter.tensors[key] for key in self._keys)
        self._block = torch.zeros(size, dtype=torch.uint8)
        for key, place in zip(self._keys, self._places, strict=True):
            place.view(self._block).copy_(adapter.tensors[key])
        self.adapter = replace(adapter, tensors={})
        if locked_for is not None and locked_for.type == "cuda":
            pin(self._block, device=locked_for)

    def on(self, device: torch.device) -> dict[str, Tensor]:
        """Return the tensors on a device."""
        block = self._block.to(device, non_blocking=True)
        return self._scalars | {key: place.view(block) for key, place in zip(self._keys, self._places, strict=True)}


class AdapterReader:
    """Reads adapters for one base model, and remembers the last ones on the host, checked. Threads may share it.

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
        self._checked: OrderedDict[str, _Kept] = OrderedDict()  # by sha256
        self._one_at_a_time = threading.Lock()

    def read(self, ref: AdapterRef, path: Path) -> Adapter:
        """Return the adapter at `path`, which must still be the one that `ref` names.

        Raises:
            AdapterNotFound, AdapterRefused, AdapterMismatch: see `read_adapter`.
        """
        with self._one_at_a_time:
            kept = self._kept(ref, path)
        return replace(kept.adapter, ref=ref, tensors=kept.on(self._device))

    def prepare(self, ref: AdapterRef, path: Path) -> None:
        """Read an adapter that will be asked for, if there is room to remember it.

        Raises:
            AdapterNotFound, AdapterRefused, AdapterMismatch: see `read_adapter`.
        """
        if ref.size_bytes <= self._cache_bytes:
            with self._one_at_a_time:
                self._kept(ref, path)

    def _kept(self, ref: AdapterRef, path: Path) -> _Kept:
        if ref.sha256 not in self._checked:
            return self._remember(read_adapter(ref, path, model=self._model, layers=self._layers))
        _check_identity(ref, path)
        self._checked.move_to_end(ref.sha256)
        return self._checked[ref.sha256]

    def _remember(self, adapter: Adapter) -> _Kept:
        room = adapter.ref.size_bytes <= self._cache_bytes
        kept = _Kept(adapter, locked_for=self._device if room else None)
        if room:
            self._checked[adapter.ref.sha256] = kept
            while sum(other.adapter.ref.size_bytes for other in self._checked.values()) > self._cache_bytes:
                self._checked.popitem(last=False)
        return kept


def read_adapter(ref: AdapterRef, path: Path, *, model: str, layers: Mapping[str, tuple[int, int]]) -> Adapter:
    """Load the file at `path`, which must still be the one that `ref` names, to the host.

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
    layout = parse_layout(read_header(path, max_bytes=ref.size_bytes))
    check_fits_base(layout, layers, model=model)
    tensors = _tensors(path)
    _check_identity(ref, path)
    ignored = {key for update in layout.updates for key in update.ignored}
    for key, tensor in tensors.items():
        # LoKr's ignored alpha of 1e10 is infinite in AI Toolkit's float16 files; NaN is damage anywhere.
        sound = ~tensor.float().isnan() if key in ignored else tensor.float().isfinite()
        if not sound.all():
            raise AdapterRefused(f"{key!r} holds a value that is not finite")
    felt = tuple(update for update in layout.updates if _is_felt(update, tensors))
    return Adapter(ref, layout, tensors, felt)


def _is_felt(update: LayerUpdate, tensors: Mapping[str, Tensor]) -> bool:
    """Whether an update is more than a product with a factor of zeros, as of a layer that was never trained."""
    factors = [tensors[key] for role, key in update.tensors.items() if role not in ("alpha", "magnitude")]
    return "magnitude" in update.tensors or all(bool(factor.any()) for factor in factors)


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
