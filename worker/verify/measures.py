"""Measure the distance of tensors from the goldens.

The manifest states a tolerance for each quantity and metric, such as `max_abs` or `rel_l2`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.kernels.distance import rel_l2
from worker.verify.outcome import Outcome

# Neighbouring floats of one sign have neighbouring bit patterns, read as integers of the same width in bytes.
_INTEGERS = {2: torch.int16, 4: torch.int32}


@dataclass(frozen=True)
class Measure:
    """The error of one quantity in one metric.

    Attributes:
        what: name of the quantity, e.g. `latents` or `pred_003`, or a phrase about it that ends with a colon.
        metric: e.g. `rel_l2`; the unit of `error`.
        limit: largest error that passes; None if the goldens state no limit and the error is only reported.
    """

    what: str
    metric: str
    error: float
    limit: float | None

    @property
    def passed(self) -> bool:
        """Whether the error is within the limit; NaN never is."""
        return self.limit is None or self.error <= self.limit

    def __str__(self) -> str:
        bound = "" if self.limit is None else f" {'of' if self.passed else '>'} {self.limit:.2g}"
        error = f"{self.error:.0f}" if self.error.is_integer() else f"{self.error:.2g}"
        return f"{self.what} {self.metric} {error}{bound}"


def measure(what: str, got: Tensor, golden: Tensor, tolerance: Mapping[str, float]) -> list[Measure]:
    """Compare two tensors of the same shape and dtype in each metric of `tolerance`.

    An empty `tolerance` reports max_abs without a limit. Different shapes or dtypes give one failed measure.

    Raises:
        ValueError: `tolerance` names an unknown metric.
    """
    if mismatch := _shape_mismatch(what, got, golden):
        return [mismatch]
    got, golden = got.detach().cpu(), golden.detach().cpu()
    unknown = tolerance.keys() - _METRICS.keys()
    # Ignoring one would let an unchecked case pass.
    if unknown:
        raise ValueError(f"{what}: unknown metrics {sorted(unknown)} in the tolerance; use {sorted(_METRICS)}")
    limits: Mapping[str, float | None] = tolerance or {"max_abs": None}
    return [Measure(what, metric, _METRICS[metric](got, golden), limit) for metric, limit in limits.items()]


def equal(what: str, got: Tensor, golden: Tensor) -> Measure:
    """Count the elements that differ; the limit is 0. NaN differs from everything."""
    if mismatch := _shape_mismatch(what, got, golden):
        return mismatch
    got, golden = got.detach().cpu(), golden.detach().cpu()
    differ = int((got != golden).sum())
    if not differ:
        return Measure(what, "elements differ", 0.0, 0.0)
    most = f"of {golden.numel()}, by {_max_abs(got, golden):.2g} at most:"
    return Measure(f"{what} {most}", "elements differ", float(differ), 0.0)


def same_bits(what: str, got: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> Measure:
    """Count the tensors whose bits changed; -0.0 and 0.0 have different bits. The limit is 0."""
    differ = [name for name in sorted(before) if not torch.equal(_bits(got[name]), _bits(before[name]))]
    return Measure(f"{what} {differ[0]}:" if differ else what, "tensors differ", float(len(differ)), 0.0)


def outcome(type_: str, name: str, dtype: str, measures: Sequence[Measure]) -> Outcome:
    """Summarise a case by its failures or, if it has none, by the measure nearest to its limit."""
    # A check that compares nothing must not pass.
    if not measures:
        return Outcome(type_, name, dtype, None, None, exact=False, passed=False, detail="nothing was compared")
    failed = [found for found in measures if not found.passed]
    worst = max(failed or measures, key=_share)
    return Outcome(
        type=type_,
        name=name,
        dtype=dtype,
        error=worst.error,
        tolerance=worst.limit,
        exact=all(found.error == 0 for found in measures),
        passed=not failed,
        detail=_failures(failed) if failed else _worst_by_metric(measures),
    )


def _failures(failed: Sequence[Measure], most: int = 4) -> str:
    more = f"; {len(failed) - most} more" if len(failed) > most else ""
    return "; ".join(str(found) for found in failed[:most]) + more


def _worst_by_metric(measures: Sequence[Measure]) -> str:
    """List the largest error of each metric, without the metrics whose errors are all 0."""
    worst: dict[str, Measure] = {}
    for found in sorted(measures, key=_share):
        if found.error:
            worst[found.metric] = found
    return "; ".join(str(found) for found in worst.values())


def _shape_mismatch(what: str, got: Tensor, golden: Tensor) -> Measure | None:
    """Return a failed measure if shape or dtype differ, else None."""
    ours, theirs = (f"{tensor.dtype} {list(tensor.shape)}".removeprefix("torch.") for tensor in (got, golden))
    return None if ours == theirs else Measure(f"{what} is {ours}, not {theirs}:", "shape or dtype differs", 1.0, 0.0)


def _share(measure: Measure) -> float:
    """Return the error as a fraction of the limit; infinite for NaN, and -1 without a limit."""
    if measure.limit is None:
        return -1.0
    if math.isnan(measure.error):
        return math.inf
    return measure.error / measure.limit if measure.limit else (math.inf if measure.error else 0.0)


def _max_abs(got: Tensor, golden: Tensor) -> float:
    return (got.double() - golden.double()).abs().max().item()


def _mean_abs(got: Tensor, golden: Tensor) -> float:
    return (got.double() - golden.double()).abs().mean().item()


def _max_ulp(got: Tensor, golden: Tensor) -> float:
    """Return the largest distance in representable numbers (units in the last place)."""
    return (_ordered(got) - _ordered(golden.to(got.dtype))).abs().max().item()


def _ordered(tensor: Tensor) -> Tensor:
    """Map floats to integers in the same order, so that -0.0 and 0.0 are both 0."""
    bits = _bits(tensor).long()
    # A negative float has its sign bit set: without it, the rest counts away from zero.
    return torch.where(bits < 0, -(bits & (2 ** (8 * tensor.element_size() - 1) - 1)), bits)


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().view(_INTEGERS[tensor.element_size()])


_METRICS: dict[str, Callable[[Tensor, Tensor], float]] = {
    "max_abs": _max_abs,
    "rel_l2": rel_l2,
    "max_abs_ulp": _max_ulp,
    # The manifest uses these two names for pixels.
    "max_diff": _max_abs,
    "mean_diff": _mean_abs,
}
