"""Measure the relative distance between two tensors."""

from __future__ import annotations

import math

from torch import Tensor


def rel_l2(got: Tensor, golden: Tensor) -> float:
    """Return the L2 norm of the difference, relative to that of `golden`; infinite if only `golden` is all zeros."""
    difference, size = (got.double() - golden.double()).norm().item(), golden.double().norm().item()
    return difference / size if size else (math.inf if difference else 0.0)
