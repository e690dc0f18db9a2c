"""Run a stack of layers that is not on the device: each comes there while those before it compute.

At full size this keeps 3.3 GB of the text encoder on a GPU instead of 33, for 0.6 to 0.8 s a pass instead of 0.04.
Layers come from the checkpoint's files, in the page cache that all workers of a host share, or from copies in host
memory where the files hold other values. They compute what they always do, so nothing else changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from shared.errors import CheckpointError, WeightsLost
from worker.checkpoint.packing import PackedTensor, pack_layout
from worker.checkpoint.pinned import pin, side_stream
from worker.checkpoint.reader import Reader, Region, already_complete
from worker.kernels.checksum import checksum

#: Layers on the device at once: one computes, one is ready, one is on its way.
BUFFERS = 3

# Waits until a layer is there, on the current stream or on the calling thread.
_Wait = Callable[[], None]


class _Layer:
    """A layer's tensors and their places in one block of memory."""

    def __init__(self, module: nn.Module) -> None:
        self.tensors = [*module.parameters(), *module.buffers()]
        self.places, self.size = pack_layout(self.tensors)

    def lie_in(self, block: Tensor) -> None:
        """Let the layer's tensors be those in `block`."""
        for tensor, place in zip(self.tensors, self.places, strict=True):
            tensor.data = place.view(block)


class _Source(Protocol):
    """Where layers come from."""

    def home(self, number: int) -> Tensor:
        """Return the block in which a layer's tensors lie while it is not on the device."""

    def fetch(self, number: int, target: Tensor) -> _Wait:
        """Begin to bring a layer into `target`; nothing uses that any more but what the current stream was given."""


class HostCopies:
    """Copies of the layers in host memory, page-locked for a GPU, which one copy moves each."""

    def __init__(self, layers: Sequence[_Layer], *, device: torch.device) -> None:
        self._blocks = [self._copy(layer, device) for layer in layers]
        self._device = device
        self._stream = side_stream(device)

    @staticmethod
    def _copy(layer: _Layer, device: torch.device) -> Tensor:
        block = torch.zeros(layer.size, dtype=torch.uint8)
        for tensor, place in zip(layer.tensors, layer.places, strict=True):
            place.view(block).copy_(tensor)
        return pin(block, device=device) if device.type == "cuda" else block

    def home(self, number: int) -> Tensor:
        return self._blocks[number]

    def fetch(self, number: int, target: Tensor) -> _Wait:
        if self._stream is None:
            target.copy_(self._blocks[number])
            return already_complete
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            target.copy_(self._blocks[number], non_blocking=True)
            arrived: Any = self._stream.record_event()
        return lambda: torch.cuda.current_stream(self._device).wait_event(arrived)


class CheckpointFiles:
    """The checkpoint's files, which are held open; what was read first must come again each time.

    Args:
        regions: of each layer's tensors, in their order.
    """

    def __init__(
        self,
        layers: Sequence[_Layer],
        regions: Sequence[Sequence[Sequence[Region]]],
        *,
        reader: Reader,
        device: torch.device,
    ) -> None:
        self._layers = layers
        self._regions = regions
        self._reader = reader
        for file in {region.file for tensors in regions for rows in tensors for region in rows}:
            reader.pin(file)
        self._sums: dict[int, Tensor] = {}
        self._changed = torch.zeros((), dtype=torch.bool, device=device)
        # Never touched, so it takes no memory.
        self._nowhere = torch.empty(max(layer.size for layer in layers), dtype=torch.uint8)

    def home(self, number: int) -> Tensor:
        return self._nowhere

    def fetch(self, number: int, target: Tensor) -> _Wait:
        places = self._layers[number].places
        arrivals = [
            self._reader.read_rows(regions, place.view(target))
            for place, regions in zip(places, self._regions[number], strict=True)
        ]

        def wait() -> None:
            try:
                for arrive in arrivals:
                    arrive()
            except CheckpointError as error:
                raise WeightsLost(f"the text encoder cannot be read again: {error}") from error
            self._compare(number, [_matrix(place, target) for place in places])

        return wait

    def _compare(self, number: int, matrices: Sequence[Tensor]) -> None:
        """Hold a layer's bits to those that came first; at the last layer tell."""
        total = torch.stack([checksum(matrix) for matrix in matrices])
        self._changed |= (total != self._sums.setdefault(number, total)).any()
        if number == len(self._layers) - 1 and self._changed:
            raise WeightsLost("the text encoder's files have changed since they were first read")


class LayerStreamer:
    """Keeps `BUFFERS` layers of a stack on the device, always the next ones; after the last comes the first again.

    Args:
        modules: run in this order, whole passes only.
        regions: where their tensors lie in files, in their order; None if they are not there as they are. Then the
            tensors themselves must hold the values.
        reader: of those files.
    """

    def __init__(
        self,
        modules: Sequence[nn.Module],
        *,
        device: torch.device,
        regions: Sequence[Sequence[Sequence[Region]]] | None = None,
        reader: Reader | None = None,
    ) -> None:
        self._device = device
        self._layers = [_Layer(module) for module in modules]
        self._source: _Source
        if regions is None or reader is None:
            self._source = HostCopies(self._layers, device=device)
        else:
            self._source = CheckpointFiles(self._layers, regions, reader=reader, device=device)
        size = max(layer.size for layer in self._layers)
        count = min(BUFFERS, len(self._layers))
        self._buffers = [torch.empty(size, dtype=torch.uint8, device=device) for _ in range(count)]
        self._waits: list[_Wait] = [already_complete] * count
        self._asked = 0  # fetches begun, over all passes
        self._ran = 0  # layers done, over all passes
        for number, module in enumerate(modules):
            self._layers[number].lie_in(self._source.home(number))
            module.register_forward_pre_hook(self._before(number))
            module.register_forward_hook(self._after(number))
        for _ in range(count):
            self._fetch()

    @property
    def device_bytes(self) -> int:
        """What the buffers take on the device."""
        return sum(len(buffer) for buffer in self._buffers)

    def _before(self, number: int) -> Any:
        def hook(*_: Any) -> None:
            if number == 0 and self._ran % len(self._layers):
                self._start_over()
            slot = self._ran % len(self._buffers)
            self._waits[slot]()
            self._layers[number].lie_in(self._buffers[slot])

        return hook

    def _after(self, number: int) -> Any:
        def hook(*_: Any) -> None:
            self._layers[number].lie_in(self._source.home(number))
            self._ran += 1
            self._fetch()

        return hook

    def _fetch(self) -> None:
        """Begin to bring the next layer into the buffer whose layer is done."""
        slot, number = self._asked % len(self._buffers), self._asked % len(self._layers)
        self._asked += 1
        self._waits[slot] = self._source.fetch(number, self._buffers[slot][: self._layers[number].size])

    def _start_over(self) -> None:
        """Put the first layers back: an error ended the pass before."""
        for wait in self._waits:
            wait()
        for number, layer in enumerate(self._layers):
            layer.lie_in(self._source.home(number))
        self._ran = self._asked = 0
        for _ in self._buffers:
            self._fetch()


def _matrix(place: PackedTensor, block: Tensor) -> Tensor:
    tensor = place.view(block)
    return tensor.view(len(tensor) if tensor.ndim > 1 else 1, -1)
