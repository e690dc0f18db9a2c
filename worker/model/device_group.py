"""The processes that share the tokens of one image, each with its own device and a copy of the weights."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from worker.model.head_exchange import EXCHANGES, CollectiveExchange, HeadExchange, LocalExchange
from worker.model.heads import Angles, HeadProjection, Heads
from worker.model.peer_exchange import PeerExchange
from worker.model.rotary_norm import norm_kernel_runs
from worker.model.token_split import CPU_LIMITS, GPU_LIMITS, RowLimits, TokenSplit, split_tokens

# How long a process waits for another one in a call of torch.distributed.
_TIMEOUT = timedelta(seconds=120)


def _start_at_once() -> None:
    """Let a pass start without a signal."""


class DeviceGroup:
    """This process' place in a group of 2, 4 or 8 processes; it is the `HeadExchange` of all their splits.

    Splits of fewer devices use the first devices of the group.

    Args:
        meeting_point: a file that does not exist yet, the same in all processes.
        rank: 0 for the process that leads.
        devices: number of processes, each with one device.
        limits: see `RowLimits`; by default those of the device's type.

    Raises:
        ValueError: this process has been in another group of GPUs.

    Attributes:
        name: name of the group in this process, for `attend_in_group`; the same at each start.
        on_pass: called before each pass that is divided; an error that it raises ends the pass.
        is_split: whether passes are divided; otherwise each process computes its passes alone.
        is_in_pass: whether this process runs a divided pass; after an error, the other devices wait for its part.
    """

    def __init__(
        self, meeting_point: Path, *, rank: int, devices: int, device: torch.device, limits: RowLimits | None = None
    ) -> None:
        self.device = device
        # GPUs exchange addresses of memory, and torch counts the exchanges of a process: one that has counted more than
        # the others would wait forever. See https://github.com/pytorch/pytorch/issues/196082.
        if device.type == "cuda" and any(
            isinstance(group, DeviceGroup) and group.device.type == "cuda" for group in EXCHANGES.values()
        ):
            raise ValueError("this process has been in a group of GPUs before; another group needs a new process")
        # torch reads only the environment; by default it listens on all networks of the host.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        method = f"file://{meeting_point}"
        dist.init_process_group("gloo", init_method=method, rank=rank, world_size=devices, timeout=_TIMEOUT)
        # Compiled code contains the name: a new name at each start would miss the compiler's caches.
        self.name = f"group-{len(EXCHANGES)}"
        self.rank = rank
        self.devices = devices
        self.on_pass: Callable[[], None] = _start_at_once
        self.is_split = False
        self.is_in_pass = False
        self._limits = limits or (GPU_LIMITS if device.type == "cuda" else CPU_LIMITS)
        self._exchanges: dict[int, HeadExchange] = {1: LocalExchange()}
        self._current: HeadExchange = self._exchanges[1]
        EXCHANGES[self.name] = self

    def open(self, transformer: Any) -> None:
        """Prepare the exchange of this transformer's heads; all processes call this at the same time.

        Raises:
            ValueError: the number of heads is no multiple of the number of devices.
        """
        heads, width = transformer.config.num_attention_heads, transformer.config.attention_head_dim
        if heads % self.devices:
            raise ValueError(f"{heads} attention heads cannot be shared by {self.devices} devices")
        count = self.devices
        while count > 1:
            # Processes without a part in a split form groups of their own; see `begin`.
            for first in range(0, self.devices, count):
                ranks = range(first, first + count)
                # Every process takes part in making a group, also if it does not belong to it.
                group = dist.new_group(list(ranks))
                if self.rank in ranks:
                    self._exchanges[count] = self._exchange(group, heads, width, transformer.dtype)
            count //= 2

    @contextmanager
    def dividing(self, is_split: bool) -> Iterator[None]:
        """Divide the passes inside the `with` block, or not; all processes must run the same passes then."""
        self.is_split, self.is_in_pass = is_split, False
        try:
            yield
        finally:
            self.is_split = False

    def split(self, *, text: int, image: int, batch: int) -> TokenSplit:
        """Return the split of a pass with this many tokens."""
        alone = not self.is_split or batch > 1
        return split_tokens(text=text, image=image, devices=1 if alone else self.devices, limits=self._limits)

    def begin(self, split: TokenSplit) -> None:
        self.is_in_pass = split.devices > 1
        self._current = self._exchanges[split.devices]
        # Also without a part in the pass: all processes must exchange addresses equally often; see `__init__`.
        self._current.begin(split)
        self.is_in_pass = split.devices > 1 and self.has_part(split)

    def has_part(self, split: TokenSplit) -> bool:
        """Whether this process computes a pass of this split; a small image needs fewer devices."""
        return not self.is_split or self.rank < split.devices

    def attend(self, parts: list[Heads], angles: Angles, eps: float) -> Tensor:
        return self._current.attend(parts, angles, eps)

    def project_and_attend(self, projection: HeadProjection, angles: Angles, eps: float) -> tuple[Tensor, Tensor]:
        return self._current.project_and_attend(projection, angles, eps)

    def gather_image(self, rows: Tensor) -> Tensor:
        image = self._current.gather_image(rows)
        # The other devices need nothing more of this one.
        self.is_in_pass = False
        return image

    def close(self) -> None:
        """Leave the group; this process still runs passes of the same transformers alone."""
        # The blocks still name this group, so it stays in `EXCHANGES`.
        self._exchanges = {1: LocalExchange()}
        self._current = self._exchanges[1]
        dist.destroy_process_group()

    def _exchange(self, group: Any, heads: int, width: int, dtype: torch.dtype) -> HeadExchange:
        if self.device.type == "cpu":
            return CollectiveExchange(group)
        if dtype is not torch.bfloat16 or not norm_kernel_runs(self.device, heads=heads, width=width):
            raise ValueError("several GPUs need activations in bfloat16, heads of 128 channels, and Triton")
        return PeerExchange(group, device=self.device, heads=heads, width=width, dtype=dtype)
