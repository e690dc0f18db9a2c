"""Prepare the next item in one thread while another thread renders the current item."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

import torch

from shared.job import AdapterRef, ItemSpec
from worker.checkpoint.pinned import side_stream
from worker.lora.hot_swap import AdapterSwapper
from worker.rendering.item_inputs import InputBuilder, ItemInputs
from worker.rendering.reference_encoder import ReferenceEncoder

# The current item may be tried again after the next one is prepared, so the inputs of both are kept.
_KEPT = 2


class PreparedItem(NamedTuple):
    """An item that is expected to render soon.

    Attributes:
        files: the adapters' files, in merge order.
        turn: the turn in which its preparation began.
    """

    spec: ItemSpec
    files: tuple[tuple[AdapterRef, Path], ...]
    inputs: ItemInputs
    turn: int


class PreparedItems:
    """Prepares items and keeps the last ones; threads may share it.

    A turn is one item's denoising. An item that was prepared in an earlier turn is no longer the next one.
    """

    def __init__(self, swapper: AdapterSwapper, inputs: InputBuilder, references: ReferenceEncoder) -> None:
        self._swapper = swapper
        self._inputs = inputs
        self._references = references
        self._device = swapper.components.device
        self._stream = side_stream(self._device)
        self._lock = threading.Lock()
        self._items: tuple[PreparedItem, ...] = ()
        self._turn = 0

    def prepare(
        self, spec: ItemSpec, adapters: Sequence[Path], *, files_only: bool, between: Callable[[], None]
    ) -> None:
        """Preload an item's adapters, build its inputs, and prepare its reference images.

        Args:
            files_only: see `ReferenceEncoder.load`.
            between: called before each reference image; an error that it raises ends the preparation.

        Raises:
            InvalidRequest, AdapterNotFound, AdapterRefused, AdapterMismatch, ReferenceRefused, StorageUnavailable: as
                rendering the item will.
        """
        with self._lock:
            turn = self._turn
        files = tuple(zip(spec.adapters, adapters, strict=True))
        for ref, path in files:
            self._swapper.preload(ref, path)
        with self._on_side_stream():
            inputs = self._inputs.build(spec)
        with self._lock:
            self._items = (*self._items, PreparedItem(spec, files, inputs, turn))[-_KEPT:]
        if spec.references:
            # Last, because the store may be slow. Not encoded: that happens in the thread that decodes, which keeps the
            # algorithms of its convolutions, and while no step uses memory.
            between()
            loaded = self._references.load(spec.references, files_only=files_only, between=between)
            with self._on_side_stream():
                self._references.upload(loaded)

    def inputs_of(self, spec: ItemSpec) -> ItemInputs:
        """Return an item's inputs, prepared or built now."""
        with self._lock:
            prepared = next((item.inputs for item in self._items if item.spec == spec), None)
        return self._inputs.build(spec) if prepared is None else prepared

    def next_item(self) -> PreparedItem | None:
        """Return the item that was prepared in this turn, if there is one."""
        with self._lock:
            latest = self._items[-1] if self._items else None
            return latest if latest is not None and latest.turn == self._turn else None

    def end_turn(self) -> None:
        """Record that an item's denoising has ended, with or without success."""
        with self._lock:
            self._turn += 1

    @contextmanager
    def _on_side_stream(self) -> Iterator[None]:
        """Run the block on the side stream, and wait until the device has done its work."""
        # A new thread's current device is the first GPU; synchronising a stream would open a context there.
        device = torch.cuda.device(self._device) if self._stream is not None else nullcontext()
        with torch.no_grad(), device, torch.cuda.stream(self._stream):
            yield
            if self._stream is not None:
                self._stream.synchronize()
