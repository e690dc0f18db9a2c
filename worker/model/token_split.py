"""Divide the tokens of one image among several devices, without changing a bit of the result.

A product of some rows has the bits of the product of all rows only if the library uses the same kernel for both, and
for few rows it uses another one. So each device gets many rows, and small images use fewer devices.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor


@dataclass(frozen=True)
class RowLimits:
    """The numbers of rows whose products have the bits of the product of all rows.

    Attributes:
        double, single: the fewest rows in the layers of a double-stream and of a single-stream block.
        also_double: smaller numbers of rows that are allowed in double-stream blocks.
    """

    double: int
    single: int
    also_double: tuple[int, ...] = ()

    def allow_double(self, rows: int) -> bool:
        """Whether a part of the image's or of the text's tokens may have this many rows."""
        return rows >= self.double or rows in self.also_double

    def allow_single(self, rows: int) -> bool:
        """Whether a part of the joint sequence may have this many rows."""
        return rows >= self.single


# Measured on an H200 with cuBLAS of CUDA 13, in bfloat16. The feed-forward's second layer and the text's first layer
# differ with 32 to 192 and 288 rows, the last layer of a single block below 512; no other layer differs.
GPU_LIMITS = RowLimits(double=320, single=512, also_double=(256,))
CPU_LIMITS = RowLimits(double=1, single=1)


@dataclass(frozen=True)
class SequenceSplit:
    """The rows of the sequence [text, image] that each device computes.

    Attributes:
        text, image: a range of rows for each device. Devices have different rows, except that each may have all text.
    """

    text: tuple[range, ...]
    image: tuple[range, ...]

    @property
    def is_text_whole(self) -> bool:
        """Whether every device computes all text rows."""
        return len(self.text) > 1 and len(set(self.text)) == 1

    @property
    def length(self) -> int:
        """Number of rows of the whole sequence."""
        return self.image[-1].stop

    def count(self, device: int) -> int:
        """Return the number of a device's rows."""
        return len(self.text[device]) + len(self.image[device])

    def rows(self, device: int, target: torch.device) -> Tensor:
        """Return a device's rows in the order in which it holds them, int32, on `target`."""
        parts = self.text[device], self.image[device]
        return torch.cat([torch.arange(part.start, part.stop, dtype=torch.int32, device=target) for part in parts])

    def owners(self, target: torch.device) -> Tensor:
        """Return the device that computes each row, int32, on `target`; -1 if every device does."""
        owners = torch.full((self.length,), -1, dtype=torch.int32, device=target)
        for parts in (self.image,) if self.is_text_whole else (self.text, self.image):
            for device, part in enumerate(parts):
                owners[part.start : part.stop] = device
        return owners

    def local_rows(self, target: torch.device) -> Tensor:
        """Return the index of each row among the rows of its device, int32, on `target`."""
        # Made on the device, here and below: a copy from the host would wait for weights that are being copied there.
        indices = torch.empty(self.length, dtype=torch.int32, device=target)
        for device in range(len(self.image)):
            rows = self.rows(device, target)
            indices[rows] = torch.arange(len(rows), dtype=torch.int32, device=target)
        return indices


@dataclass(frozen=True)
class TokenSplit:
    """How the tokens of a pass are divided.

    Attributes:
        double, single: the rows of each device in double-stream and in single-stream blocks. Both have the same rows
            of the image.
    """

    double: SequenceSplit
    single: SequenceSplit

    @property
    def devices(self) -> int:
        """Number of devices that take part."""
        return len(self.single.image)


def split_tokens(*, text: int, image: int, devices: int, limits: RowLimits) -> TokenSplit:
    """Divide the tokens of a pass among as many devices as the limits allow, down to one.

    Args:
        text, image: number of tokens; those of reference images count as the image's.
        devices: 1, 2, 4 or 8.
    """
    counts = list(_halves(devices))
    for count in counts:
        split = _split(text, image, count, limits)
        if count == 1 or _keeps_bits(split, limits):
            return split
    raise AssertionError("one device is always allowed")


def _halves(devices: int) -> Iterator[int]:
    while devices > 1:
        yield devices
        devices //= 2
    yield 1


def _split(text: int, image: int, devices: int, limits: RowLimits) -> TokenSplit:
    text_parts, image_parts = _parts(0, text, devices), _parts(text, image, devices)
    single = SequenceSplit(text_parts, image_parts)
    # A double-stream block multiplies text and image separately, so a part of the text may be too short by itself.
    if all(limits.allow_double(len(part)) for part in text_parts):
        return TokenSplit(single, single)
    return TokenSplit(SequenceSplit((range(text),) * devices, image_parts), single)


def _keeps_bits(split: TokenSplit, limits: RowLimits) -> bool:
    return all(limits.allow_double(len(part)) for part in split.double.image) and all(
        limits.allow_single(split.single.count(device)) for device in range(split.devices)
    )


def _parts(start: int, count: int, devices: int) -> tuple[range, ...]:
    """Divide rows into parts whose lengths differ by at most one."""
    size, longer = divmod(count, devices)
    ends = accumulate((size + (device < longer) for device in range(devices)), initial=start)
    return tuple(range(first, stop) for first, stop in pairwise(ends))
