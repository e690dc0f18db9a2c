"""Run a stack of layers that waits in host memory: each is copied to the device while those before it compute.

At full size this keeps 3.3 GB of the text encoder on a GPU instead of 33, for 0.6 s a pass instead of 0.04. The layers
compute what they always do, so nothing else changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from worker.pipeline.host import lock

#: Layers on the device at once: one computes, one is ready, one is on its way.
BUFFERS = 3

# Of tensors inside a buffer, in bytes: kernels read vectors of 16, and matrix products want more.
_ALIGNMENT = 256


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies in its layer's buffer."""

    tensor: Tensor
    start: int

    def view(self, buffer: Tensor) -> Tensor:
        flat = buffer[self.start : self.start + self.tensor.nbytes]
        return flat.view(self.tensor.dtype).view(self.tensor.shape)


class _Layer:
    """A layer's weights, packed into one block of host memory that one copy moves."""

    def __init__(self, module: nn.Module, *, device: torch.device) -> None:
        self._places = list(_places(module))
        last = self._places[-1]
        self.host = torch.zeros(last.start + last.tensor.nbytes, dtype=torch.uint8)
        for place in self._places:
            place.view(self.host).copy_(place.tensor)
        if device.type == "cuda":
            lock(self.host, device=device)
        self.lie_in(self.host)

    def lie_in(self, buffer: Tensor) -> None:
        """Let the layer's tensors be those in `buffer`."""
        for place in self._places:
            place.tensor.data = place.view(buffer)


class Streamed:
    """Keeps `BUFFERS` layers of a stack on the device, always the next ones; after the last comes the first again.

    Args:
        layers: run in this order, whole passes only.
    """

    def __init__(self, layers: Sequence[nn.Module], *, device: torch.device) -> None:
        self._device = device
        self._layers = [_Layer(module, device=device) for module in layers]
        size = max(len(layer.host) for layer in self._layers)
        count = min(BUFFERS, len(self._layers))
        self._buffers = [torch.empty(size, dtype=torch.uint8, device=device) for _ in range(count)]
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._arrived: list[Any] = [None] * count
        self._asked = 0  # copies begun, over all passes
        self._ran = 0  # layers done, over all passes
        for number, module in enumerate(layers):
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
            if self._stream is not None:
                torch.cuda.current_stream(self._device).wait_event(self._arrived[slot])
            self._layers[number].lie_in(self._buffers[slot])

        return hook

    def _after(self, number: int) -> Any:
        def hook(*_: Any) -> None:
            self._layers[number].lie_in(self._layers[number].host)
            self._ran += 1
            self._fetch()

        return hook

    def _fetch(self) -> None:
        """Begin to copy the next layer into the buffer whose layer is done."""
        slot, layer = self._asked % len(self._buffers), self._layers[self._asked % len(self._layers)]
        self._asked += 1
        target = self._buffers[slot][: len(layer.host)]
        if self._stream is None:
            target.copy_(layer.host)
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            target.copy_(layer.host, non_blocking=True)
            self._arrived[slot] = self._stream.record_event()

    def _start_over(self) -> None:
        """Put the first layers back: an error ended the pass before."""
        for layer in self._layers:
            layer.lie_in(layer.host)
        self._ran = self._asked = 0
        for _ in self._buffers:
            self._fetch()


def _places(module: nn.Module) -> Iterator[_Place]:
    start = 0
    for tensor in (*module.parameters(), *module.buffers()):
        yield _Place(tensor, start)
        start += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
