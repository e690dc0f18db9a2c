"""The clean values of weights that adapters change, to put back: bytes of the checkpoint, or copies.

The checkpoint's bytes cost a process no memory: all workers of a host read the same page cache, where copies in host
memory would be 63 GB for each of them. Copies come back a little sooner, those on the device at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from shared.errors import CheckpointError, WeightsLost
from worker.pipeline.host import locked_like
from worker.pipeline.placement import CleanPlace
from worker.pipeline.reading import Reader, Region


class CleanWeights:
    """Keeps what is clean of the parameters that are about to be changed.

    Args:
        weights: all parameters, by name.
        regions: those whose bytes lie in files as they are, in the order of their rows. The files are held open: what
            replaces them later is not read.
    """

    def __init__(
        self, weights: Mapping[str, Tensor], *, place: CleanPlace, regions: Mapping[str, Sequence[Region]]
    ) -> None:
        self._weights = weights
        self._place = place
        self._regions = regions if place == "file" else {}
        self._copies: dict[str, Tensor] = {}
        self._reader: Reader | None = None
        if self._regions:
            self._reader = Reader(next(iter(weights.values())).device)
            for file in {region.file for parts in self._regions.values() for region in parts}:
                self._reader.open(file)

    @property
    def bytes(self) -> int:
        """What the copies take."""
        return sum(copy.nbytes for copy in self._copies.values())

    def keep(self, name: str) -> None:
        """Remember a parameter that is clean now."""
        if name in self._regions or name in self._copies:
            return
        weight = self._weights[name]
        copy = torch.empty_like(weight) if self._place == "device" else locked_like(weight)
        self._copies[name] = copy.copy_(weight)

    @torch.no_grad()
    def put_back(self, names: Sequence[str]) -> None:
        """Make parameters clean that were kept before.

        Raises:
            WeightsLost: a file has become shorter; the parameters are then in no known state.
        """
        for name in names:
            if name in self._copies:
                self._weights[name].copy_(self._copies[name], non_blocking=True)
        if self._reader is None:
            return
        for name in names:
            if name in self._regions:
                self._reader.read_rows(self._regions[name], self._weights[name])
        try:
            self._reader.wait()
        except CheckpointError as error:
            raise WeightsLost(f"clean weights cannot be read again: {error}") from error
