"""Read and check an adapter file completely before any weight is written.

The API checked the header when it accepted the job, but the file may have changed since, and only the worker reads the
values.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import safetensors.torch
import torch
from cachetools import LRUCache
from safetensors import SafetensorError
from torch import Tensor

from shared.adapters.alphas import read_alphas
from shared.adapters.header import read_open_header
from shared.adapters.identity import sha256_of
from shared.adapters.kinds import LayerUpdate
from shared.adapters.layout import AdapterLayout, check_fits_base, parse_layout
from shared.adapters.opened import open_adapter
from shared.errors import AdapterNotFound, AdapterRefused
from shared.job import AdapterRef
from worker.checkpoint.packing import pack_layout
from worker.checkpoint.pinned import pin


@dataclass(frozen=True)
class Adapter:
    """A checked adapter.

    Attributes:
        tensors: the tensors of the updates, by key. `AdapterReader` moves matrices to the device that merges them.
        effective_updates: the updates that change a weight.
    """

    ref: AdapterRef
    layout: AdapterLayout
    tensors: dict[str, Tensor]
    effective_updates: tuple[LayerUpdate, ...]


class _HostAdapter:
    """An adapter in host memory, with its matrices packed into one block.

    Args:
        pinned_for: the GPU that copies the block often; None if it copies the block once.
    """

    def __init__(self, adapter: Adapter, *, pinned_for: torch.device | None) -> None:
        # Alphas, as scalars or lists of one number: the host computes with them, so they never go to the device.
        self._scalars = {
            key: tensor for key, tensor in adapter.tensors.items() if tensor.ndim < 2 and tensor.numel() == 1
        }
        self._keys = [key for key in adapter.tensors if key not in self._scalars]
        # One block, so that one copy moves all matrices to a GPU, in milliseconds.
        self._places, size = pack_layout(adapter.tensors[key] for key in self._keys)
        self._block = torch.zeros(size, dtype=torch.uint8)
        for key, place in zip(self._keys, self._places, strict=True):
            place.view(self._block).copy_(adapter.tensors[key])
        self._adapter = replace(adapter, tensors={})
        # Only cached adapters: pinning takes about as long as one copy from unpinned memory.
        if pinned_for is not None and pinned_for.type == "cuda":
            pin(self._block, device=pinned_for)

    @property
    def file_bytes(self) -> int:
        return self._adapter.ref.size_bytes

    def to_device(self, device: torch.device, *, ref: AdapterRef) -> Adapter:
        """Return the adapter with its matrices on a device, under the path and multiplier of `ref`."""
        block = self._block.to(device, non_blocking=True)
        matrices = {key: place.view(block) for key, place in zip(self._keys, self._places, strict=True)}
        return replace(self._adapter, ref=ref, tensors=self._scalars | matrices)


class AdapterReader:
    """Reads adapters for one base model and caches the checked files in host memory; threads may share it.

    Args:
        model: id in the catalogue.
        layers: (out, in) of the base model's linear layers.
        cache_bytes: total size of the cached files.
    """

    def __init__(
        self, *, model: str, layers: Mapping[str, tuple[int, int]], device: torch.device, cache_bytes: int
    ) -> None:
        self._model = model
        self._layers = layers
        self._device = device
        # An adapter of rank 32 for every layer has 390 MB, and reading and checking it takes longer than merging it.
        # Items that alternate between adapters, or between multipliers of one adapter, pay for that once.
        self._cache: LRUCache[str, _HostAdapter] = LRUCache(  # by `AdapterRef.update_key`
            cache_bytes, getsizeof=lambda adapter: adapter.file_bytes
        )
        self._lock = threading.Lock()  # one file at a time: two threads may want the same one

    def read(self, ref: AdapterRef, path: Path) -> Adapter:
        """Return the adapter at `path`, which must still be the file that `ref` names.

        Raises:
            AdapterNotFound, AdapterRefused, AdapterMismatch: see `read_adapter`.
        """
        with self._lock:
            adapter = self._load(ref, path)
        return adapter.to_device(self._device, ref=ref)

    def preload(self, ref: AdapterRef, path: Path) -> None:
        """Read an adapter that a later item needs, if the cache has room for it.

        Raises:
            AdapterNotFound, AdapterRefused, AdapterMismatch: see `read_adapter`.
        """
        if self._fits_cache(ref):
            with self._lock:
                self._load(ref, path)

    def _fits_cache(self, ref: AdapterRef) -> bool:
        return ref.size_bytes <= self._cache.maxsize

    def _load(self, ref: AdapterRef, path: Path) -> _HostAdapter:
        if ref.update_key in self._cache:
            _check_identity(ref, path)
            return self._cache[ref.update_key]
        adapter = read_adapter(ref, path, model=self._model, layers=self._layers)
        if not self._fits_cache(ref):
            return _HostAdapter(adapter, pinned_for=None)
        kept = self._cache[ref.update_key] = _HostAdapter(adapter, pinned_for=self._device)
        return kept


def read_adapter(ref: AdapterRef, path: Path, *, model: str, layers: Mapping[str, tuple[int, int]]) -> Adapter:
    """Load the file at `path`, which must still be the file that `ref` names, to the host.

    Args:
        model: id in the catalogue.
        layers: (out, in) of the base model's linear layers.

    Raises:
        AdapterNotFound: the file is gone.
        AdapterRefused: the bytes have changed since the job was accepted, the file is no adapter for this model, or a
            value is not finite; the message names the key.
        AdapterMismatch: an update has another shape than its layer.
    """
    _check_identity(ref, path)
    with open_adapter(path) as file:
        header = read_open_header(file, max_bytes=ref.size_bytes)
        alphas = read_alphas(file, header)
    # Before the other tensors are read, since most faults show here.
    layout = parse_layout(header, config=ref.peft_config or None, alphas=alphas, ignore=ref.ignore)
    check_fits_base(layout, layers, model=model)
    used = layout.keys
    tensors = {key: tensor for key, tensor in _tensors(path).items() if key in used}
    # Again, because the file may have changed while it was read.
    _check_identity(ref, path)
    ignored = {key for update in layout.updates for key in update.ignored}
    for key, tensor in tensors.items():
        # LoKr's ignored alpha of 1e10 is infinite in AI Toolkit's float16 files; NaN always means damage.
        sound = ~tensor.float().isnan() if key in ignored else tensor.float().isfinite()
        if not sound.all():
            raise AdapterRefused(f"{key!r} holds a value that is not finite; the file is damaged")
    # Merging zeros would still change the sign of weights that are -0.0, so updates without effect are left out.
    effective = tuple(update for update in layout.updates if _has_effect(update, tensors))
    return Adapter(ref, layout, tensors, effective)


def _has_effect(update: LayerUpdate, tensors: Mapping[str, Tensor]) -> bool:
    """Whether no factor of the product is all zeros."""
    # A layer that was never trained has a factor of zeros.
    factors = [tensors[key] for role, key in update.tensors.items() if role not in ("alpha", "magnitude")]
    return "magnitude" in update.tensors or all(bool(factor.any()) for factor in factors)


def _check_identity(ref: AdapterRef, path: Path) -> None:
    # Cheap when the file is unchanged: digests are cached by inode, size and times.
    if sha256_of(path) != ref.sha256:
        raise AdapterRefused(f"{ref.path!r} has changed since the job was accepted; submit again to use the new file")


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        # Read, not mapped: a trainer rewrites its files in place, and a mapped file that shrinks kills the process.
        return safetensors.torch.load(path.read_bytes())
    except FileNotFoundError as error:
        raise AdapterNotFound(f"{path.name}: no such file") from error
    except (OSError, SafetensorError) as error:
        raise AdapterRefused(f"{path.name}: cannot be read: {error}") from error
