"""What a scenario measured, and the bars that the figures have to meet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Bar:
    """One promise of the scheduler: a figure, and the most or the least that it may be."""

    name: str
    value: float
    at_most: float | None = None
    at_least: float | None = None

    @property
    def is_met(self) -> bool:
        # Not by comparisons that a NaN passes.
        return (self.at_most is None or self.value <= self.at_most) and (
            self.at_least is None or self.value >= self.at_least
        )

    @property
    def limit(self) -> str:
        """The bar in words."""
        return f"at most {self.at_most:g}" if self.at_most is not None else f"at least {self.at_least:g}"


@dataclass(frozen=True)
class Outcome:
    """The result of one scenario."""

    scenario: str
    figures: Mapping[str, float]
    bars: Sequence[Bar]

    @property
    def is_met(self) -> bool:
        return all(bar.is_met for bar in self.bars)
