"""Measure how far tensors are from the goldens, by the metrics that the manifest's tolerances name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.kernels.distance import rel_l2
from worker.verify.outcome import Outcome

# Integers of a float's width: neighbouring floats of one sign are neighbouring integers.
_INTEGERS = {2: torch.int16, 4: torch.int32}


@dataclass(frozen=True)
class Measure:
    """One quantity of a case.

    Attributes:
        what: e.g. `latents`, `pred_003`; ends with a colon where it says more.
        metric: what `error` counts, e.g. `rel_l2`.
        limit: the most that passes; None where the goldens set none, and only exactness is told.
    """

    what: str
    metric: str
    error: float
    limit: float | None

    @property
    def passed(self) -> bool:
        """False for NaN, which compares with nothing."""
        return self.limit is None or self.error <= self.limit

    def __str__(self) -> str:
        bound = "" if self.limit is None else f" {'of' if self.passed else '>'} {self.limit:.2g}"
        error = f"{self.error:.0f}" if self.error.is_integer() else f"{self.error:.2g}"
        return f"{self.what} {self.metric} {error}{bound}"


def measure(what: str, got: Tensor, golden: Tensor, tolerance: Mapping[str, float]) -> list[Measure]:
    """Compare by each metric of `tolerance`; by max_abs without a limit if it is empty. Shape and dtype must be equal.

    Raises:
        ValueError: a metric that is not known, which must not pass for want of looking.
    """
    if unlike := _unlike(what, got, golden):
        return [unlike]
    got, golden = got.detach().cpu(), golden.detach().cpu()
    unknown = tolerance.keys() - _METRICS.keys()
    if unknown:
        raise ValueError(f"{what}: no such metric as {sorted(unknown)}; known are {sorted(_METRICS)}")
    limits: Mapping[str, float | None] = tolerance or {"max_abs": None}
    return [Measure(what, metric, _METRICS[metric](got, golden), limit) for metric, limit in limits.items()]


def equal(what: str, got: Tensor, golden: Tensor) -> Measure:
    """Count the elements that differ; none may. NaN differs from everything."""
    if unlike := _unlike(what, got, golden):
        return unlike
    got, golden = got.detach().cpu(), golden.detach().cpu()
    differ = int((got != golden).sum())
    if not differ:
        return Measure(what, "elements differ", 0.0, 0.0)
    most = f"of {golden.numel()}, by {_max_abs(got, golden):.2g} at most:"
    return Measure(f"{what} {most}", "elements differ", float(differ), 0.0)


def same_bits(what: str, got: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> Measure:
    """Count the tensors that are not as before, bit for bit: -0.0 is not 0.0 here."""
    differ = [name for name in sorted(before) if not torch.equal(_bits(got[name]), _bits(before[name]))]
    return Measure(f"{what} {differ[0]}:" if differ else what, "tensors differ", float(len(differ)), 0.0)


def outcome(type_: str, name: str, dtype: str, measures: Sequence[Measure]) -> Outcome:
    """Sum a case up by the measure nearest to its limit, or the failures."""
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
    """List the largest error of each metric, where it is not 0."""
    worst: dict[str, Measure] = {}
    for found in sorted(measures, key=_share):
        if found.error:
            worst[found.metric] = found
    return "; ".join(str(found) for found in worst.values())


def _unlike(what: str, got: Tensor, golden: Tensor) -> Measure | None:
    """Return a failure if the two cannot be compared, or ought not to be."""
    ours, theirs = (f"{tensor.dtype} {list(tensor.shape)}".removeprefix("torch.") for tensor in (got, golden))
    return None if ours == theirs else Measure(f"{what} is {ours}, not {theirs}:", "unlike", 1.0, 0.0)


def _share(measure: Measure) -> float:
    """Return the part of the limit that is used up; NaN counts as infinitely much."""
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
    """Count the representable numbers between the two, at most."""
    return (_ordered(got) - _ordered(golden.to(got.dtype))).abs().max().item()


def _ordered(tensor: Tensor) -> Tensor:
    bits = _bits(tensor).long()
    return torch.where(bits < 0, -(bits & (2 ** (8 * tensor.element_size() - 1) - 1)), bits)


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().view(_INTEGERS[tensor.element_size()])


_METRICS: dict[str, Callable[[Tensor, Tensor], float]] = {
    "max_abs": _max_abs,
    "rel_l2": rel_l2,
    "max_abs_ulp": _max_ulp,
    "max_diff": _max_abs,
    "mean_diff": _mean_abs,
}
