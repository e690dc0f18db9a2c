"""How long items take: measured with each image, and smoothed in Redis by model, engine, precision and size.

`commit.lua` smooths the rows. A row is a text of whole numbers: how many images it has measured, up to a bound, and
then the mean and the mean deviation of each value. A row of a size has three values: a step in ns for a unit of
`Shape.step_weight`, the other time in the slot and the time of storing, in us. A row of swaps has one, in us.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Self, TypeVar

from shared.job import ItemResult, ItemSpec, engine_of
from shared.ledger.shape import Shape

_Rows = TypeVar("_Rows")

_SWAP: Final = "swap"
_SIZE_CLASS: Final = re.compile(r"\d+r\d+")
# Of a pace without measured sizes, which says nothing about how items differ.
_UNKNOWN_DEVIATION: Final = 0.5


@dataclass(frozen=True)
class ItemTime:
    """The expected time of one item, in ms.

    Attributes:
        render_ms: time for which its slot renders nothing else, without an adapter swap.
        store_ms: time from then until the item has ended; the slot already renders the next one.
        deviation_ms: mean distance of measured times from the expected one.
    """

    render_ms: float
    store_ms: float
    deviation_ms: float


def measure(spec: ItemSpec, result: ItemResult) -> dict[str, Any]:
    """Return what `commit.lua` adds to the rows: their names and values, in us and ns."""
    timings, shape = result.timings, Shape.of(spec)
    swap_s = timings.get("adapter", 0.0) if result.pipeline.change != "none" else 0.0
    denoise_s = timings.get("denoise", 0.0)
    prefix = f"{spec.engine}|{result.pipeline.precision}"
    return {
        "model": spec.model,
        "row": f"{prefix}|{shape.size_class}",
        "step_ns": round(1e9 * denoise_s / (max(shape.steps, 1) * shape.step_weight)),
        "denoise_us": round(1e6 * denoise_s),
        "store_us": round(1e6 * (timings.get("encode_image", 0.0) + timings.get("upload", 0.0))),
        "swap_us": round(1e6 * swap_s),
        "swap_row": f"{prefix}|{_SWAP}",
    }


@dataclass(frozen=True)
class _Row:
    """A row's number of images, and the mean and the deviation of each value."""

    count: int
    means: tuple[float, ...]
    deviations: tuple[float, ...]

    @classmethod
    def parse(cls, text: str, *, values: int) -> Self:
        """Read a row with this number of values; `ValueError` if it is another."""
        count, *numbers = (int(number) for number in text.split())
        if len(numbers) != 2 * values:
            raise ValueError(f"a row of times has {len(numbers)} numbers after the first, instead of {2 * values}")
        return cls(count, tuple(numbers[0::2]), tuple(numbers[1::2]))


class RenderTimes:
    """The measured times of one model.

    Args:
        rows: the hash `flux2:times:{model}`.
        paces_ms: smoothed times of all items of a pool, for pools of which no size is measured: an earlier version
            measured nothing else.
    """

    def __init__(self, rows: Mapping[str, str], paces_ms: Mapping[str, float]) -> None:
        self._paces_ms = paces_ms
        self._swaps: dict[str, _Row] = {}
        self._sizes: dict[str, dict[str, _Row]] = {}
        for name, text in rows.items():
            prefix, _, measured = name.rpartition("|")
            # Another version may measure more.
            with suppress(ValueError):
                if measured == _SWAP:
                    self._swaps[prefix] = _Row.parse(text, values=1)
                elif _SIZE_CLASS.fullmatch(measured):
                    row = _Row.parse(text, values=3)
                    self._sizes.setdefault(prefix, {})[measured] = row
        self._known: dict[tuple[str, str, Shape | None], ItemTime | None] = {}
        self._known_swaps: dict[tuple[str, str], float] = {}

    @property
    def are_known(self) -> bool:
        """Whether the time of any item is known."""
        return bool(self._sizes or self._paces_ms)

    def of(self, shape: Shape | None, *, pool: str, precision: str) -> ItemTime | None:
        """Return the expected time of an item, or that of a mean item of its pool; None if nothing is measured.

        Args:
            shape: None for an item that an earlier version accepted.
        """
        key = (pool, precision, shape)
        if key not in self._known:
            self._known[key] = self._measured(*key) or self._by_pace(pool)
        return self._known[key]

    def swap_ms(self, *, pool: str, precision: str) -> float:
        """Return the expected time of an adapter swap; 0 if none is measured."""
        key = (pool, precision)
        if key not in self._known_swaps:
            row = self._find(self._swaps, pool, precision)
            self._known_swaps[key] = row.means[0] / 1000 if row else 0.0
        return self._known_swaps[key]

    def _find(self, rows: Mapping[str, _Rows], pool: str, precision: str) -> _Rows | None:
        """Return the rows of an engine and a precision, or of another precision if that is not measured."""
        engine = engine_of(pool)
        others = (found for name, found in rows.items() if name.startswith(f"{engine}|"))
        return rows.get(f"{engine}|{precision}") or next(others, None)

    def _measured(self, pool: str, precision: str, shape: Shape | None) -> ItemTime | None:
        sizes = self._find(self._sizes, pool, precision)
        if sizes is None or shape is None:
            return None
        row = sizes.get(shape.size_class) or sizes[min(sizes, key=lambda name: _distance(name, shape))]
        step, other, store = row.means
        steps_ms = shape.steps * shape.step_weight
        step_deviation, other_deviation, store_deviation = row.deviations
        return ItemTime(
            render_ms=steps_ms * step / 1e6 + other / 1000,
            store_ms=store / 1000,
            deviation_ms=steps_ms * step_deviation / 1e6 + (other_deviation + store_deviation) / 1000,
        )

    def _by_pace(self, pool: str) -> ItemTime | None:
        pace_ms = self._paces_ms.get(pool)
        return None if pace_ms is None else ItemTime(pace_ms, 0.0, _UNKNOWN_DEVIATION * pace_ms)


def _distance(size_class: str, shape: Shape) -> float:
    """Return how far a class is from the size of a shape: a reference image more counts as 16 times the size."""
    size, _, references = size_class.partition("r")
    own, _, own_references = shape.size_class.partition("r")
    return abs(int(size) - int(own)) + 16 * abs(int(references) - int(own_references))
