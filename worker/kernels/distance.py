"""How far one result is from another."""

from __future__ import annotations

import math

from torch import Tensor


def rel_l2(got: Tensor, golden: Tensor) -> float:
    """Return the length of the difference, relative to that of `golden`, in float64; infinite where that has none."""
    difference, size = (got.double() - golden.double()).norm().item(), golden.double().norm().item()
    return difference / size if size else (math.inf if difference else 0.0)
