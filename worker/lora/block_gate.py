"""Let a transformer start a step while another thread still writes its weights, block after block.

Restoring the base weights of FLUX.2 [dev] takes 1.1 s over PCIe. The first block needs a fiftieth of them, so a step
starts once the first block is complete, and each later block waits for its weights. If the next adapters are known
early, a block is rewritten as soon as the last pass with the old weights has left it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch


def _ignore() -> None:
    """Do nothing when the passes end."""


class BlockGate:
    """Stops each block of a transformer until its weights are written.

    Blocks are numbered from 1 in the order in which they run; group 0 holds all parameters outside the blocks.

    Args:
        transformer: diffusers' Flux2Transformer2DModel. Its blocks get hooks that cost nothing while the gate is open.

    Attributes:
        group_of: the group of each parameter, by name.
        group_count: number of groups, including group 0.
    """

    def __init__(self, transformer: Any, *, device: torch.device) -> None:
        self._device = device
        self._changed = threading.Condition()
        self._is_closed = False
        self._written: dict[int, Any] = {}  # CUDA events by group: its weights are complete
        self._passes_left = 0  # number of passes that still run with the old weights
        self._drained: dict[int, Any] = {}  # CUDA events by group: the last pass with the old weights has left it
        self._on_drained: Callable[[], None] = _ignore
        blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
        self.group_count = 1 + len(blocks)
        self.group_of: Mapping[str, int] = _group_of(transformer, blocks)
        for group, module in enumerate([transformer, *blocks]):
            module.register_forward_pre_hook(partial(self._wait_for_weights, group))
            module.register_forward_hook(partial(self._note_drained, group))

    def close(self, *, passes: int = 0, on_drained: Callable[[], None] = _ignore) -> None:
        """Stop every block: immediately, or after `passes` more passes with the old weights.

        Args:
            on_drained: called once, from any thread, when no pass with the old weights is left. It must not call the
                gate, because the gate's lock is held.
        """
        with self._changed:
            self._written.clear()
            self._drained.clear()
            self._passes_left = passes
            self._is_closed = True
            self._on_drained = on_drained
            if not passes:
                self._end_passes()

    def wait_until_drained(self, group: int) -> None:
        """Wait until the last pass has left a group, and make the current stream wait until the device has, too."""
        with self._changed:
            self._changed.wait_for(lambda: not self._passes_left or group in self._drained)
            event = self._drained.get(group)
        if event is not None:
            torch.cuda.current_stream(self._device).wait_event(event)

    def wait_until_all_drained(self) -> None:
        """Wait until no pass with the old weights is left."""
        with self._changed:
            self._changed.wait_for(lambda: not self._passes_left)

    def skip_remaining(self) -> None:
        """Expect no more passes with the old weights, for example because one has raised."""
        with self._changed:
            if not self._passes_left:
                return
            try:
                event = self._record_event()
                for group in range(self.group_count):
                    self._drained.setdefault(group, event)
            finally:
                # A lost device cannot record an event, and the writing thread must not wait forever.
                self._end_passes()
                self._changed.notify_all()

    def open_group(self, group: int) -> None:
        """Let a group run as soon as the device has done all work of the calling thread's stream."""
        event = self._record_event()
        with self._changed:
            self._written[group] = event
            self._changed.notify_all()

    def open_all(self) -> None:
        """Let all groups run: every weight is written, or the swap has failed and its steps are thrown away."""
        with self._changed:
            self._is_closed = False
            self._passes_left = 0
            self._on_drained = _ignore
            self._changed.notify_all()

    def _end_passes(self) -> None:
        self._passes_left = 0
        on_drained, self._on_drained = self._on_drained, _ignore
        on_drained()

    def _record_event(self) -> Any:
        return torch.cuda.current_stream(self._device).record_event() if self._device.type == "cuda" else None

    def _note_drained(self, group: int, *_: Any) -> None:
        # Without the lock, here and below: every block of every pass calls this, nearly always while the gate is open.
        if not self._passes_left:
            return
        with self._changed:
            if not self._passes_left:  # a failed swap has opened the gate since
                return
            # Only the last pass: earlier passes must not let a block be rewritten.
            if self._passes_left == 1:
                self._drained[group] = self._record_event()
            if group == 0:  # the whole transformer, whose hook runs last
                self._passes_left -= 1
                if not self._passes_left:
                    self._end_passes()
            self._changed.notify_all()

    def _wait_for_weights(self, group: int, *_: Any) -> None:
        if not self._is_closed or self._passes_left:
            return
        with self._changed:
            self._changed.wait_for(lambda: not self._is_closed or group in self._written)
            event = self._written.get(group) if self._is_closed else None
        # Outside the lock, and only the stream waits: this thread continues and queues the block's kernels.
        if event is not None:
            torch.cuda.current_stream(self._device).wait_event(event)


def _group_of(transformer: Any, blocks: list[Any]) -> dict[str, int]:
    groups = {id(parameter): group for group, block in enumerate(blocks, start=1) for parameter in block.parameters()}
    return {name: groups.get(id(parameter), 0) for name, parameter in transformer.named_parameters()}
