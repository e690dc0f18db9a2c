"""Let a transformer begin while its weights are still being written, block after block, by another thread.

Putting back the clean weights of FLUX.2 [dev] takes 1.1 s over PCIe. The first block needs a fiftieth of them, so the
first step starts with it, and each block waits for its own. Where the next weights are known sooner, a block's are
written once the last pass with the old ones has gone through it.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch


class BlockGate:
    """Holds each block of a transformer of diffusers' back until its weights have arrived.

    Args:
        transformer: whose blocks wait from now on, in every pass; while nothing is being written that costs nothing.

    Attributes:
        group_of: by parameter, the number of its block in the order in which they run, from 1; 0 outside of blocks.
        groups: how many there are.
    """

    def __init__(self, transformer: Any, *, device: torch.device) -> None:
        self._device = device
        self._changed = threading.Condition()
        self._events: dict[int, Any] = {}  # by group, of what has arrived
        self._writing = False
        self._passes = 0  # to come with the weights as they are
        self._left: dict[int, Any] = {}  # by group, of what the last of those is done with
        blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
        self.groups = 1 + len(blocks)
        self.group_of: Mapping[str, int] = _group_of(transformer, blocks)
        for group, module in enumerate([transformer, *blocks]):
            module.register_forward_pre_hook(partial(self._hold, group))
            module.register_forward_hook(partial(self._leave, group))

    def begin(self, *, passes: int = 0) -> None:
        """From now on every block waits, or from the end of so many more passes."""
        with self._changed:
            self._events.clear()
            self._left.clear()
            self._passes = passes
            self._writing = True

    def wait_until_drained(self, group: int) -> None:
        """Return when the last pass has gone through a block, and hold the current stream up until it really has."""
        with self._changed:
            self._changed.wait_for(lambda: not self._passes or group in self._left)
            event = self._left.get(group)
        if event is not None:
            torch.cuda.current_stream(self._device).wait_event(event)

    def skip_remaining(self) -> None:
        """Expect no more passes with the old weights: one may have ended early."""
        with self._changed:
            if not self._passes:
                return
            try:
                event = self._now()
                for group in range(self.groups):
                    self._left.setdefault(group, event)
            finally:  # the device may be broken; whoever waits must not wait for ever
                self._passes = 0
                self._changed.notify_all()

    def arrived(self, group: int) -> None:
        """Let a block run once the device has done what the calling thread's stream was given until now."""
        event = self._now()
        with self._changed:
            self._events[group] = event
            self._changed.notify_all()

    def end(self) -> None:
        """Let all blocks run: everything is written, or nothing that they compute will be used."""
        with self._changed:
            self._writing = False
            self._changed.notify_all()

    def _now(self) -> Any:
        """Return an event of what the current stream has been given until now."""
        return torch.cuda.current_stream(self._device).record_event() if self._device.type == "cuda" else None

    def _leave(self, group: int, *_: Any) -> None:
        if not self._passes:
            return
        with self._changed:
            if self._passes == 1:
                self._left[group] = self._now()
            if group == 0:  # the transformer as a whole
                self._passes -= 1
            self._changed.notify_all()

    def _hold(self, group: int, *_: Any) -> None:
        if not self._writing or self._passes:
            return
        with self._changed:
            self._changed.wait_for(lambda: not self._writing or group in self._events)
            event = self._events.get(group) if self._writing else None
        if event is not None:
            torch.cuda.current_stream(self._device).wait_event(event)


def _group_of(transformer: Any, blocks: list[Any]) -> dict[str, int]:
    numbers = {id(parameter): group for group, block in enumerate(blocks, start=1) for parameter in block.parameters()}
    return {name: numbers.get(id(parameter), 0) for name, parameter in transformer.named_parameters()}
