"""The results of a verification, and their printed forms: a line for each case, a summary, or JSON.

This module imports no torch, so that `flux2 --help` stays fast.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class CaseType(StrEnum):
    """The types of cases in a folder of goldens, in the order in which they run."""

    SCHEDULE = "schedule"
    NOISE = "noise"
    FORWARD = "forward"
    SAMPLING = "sampling"
    REFERENCE = "reference"
    ADAPTER = "adapter"
    ADAPTER_HAND = "adapter_hand"
    PREVIEW = "preview"
    TEXT = "text"
    E2E = "e2e"


class Precision(StrEnum):
    """The number format of both weights and activations."""

    FP32 = "fp32"
    BF16 = "bf16"


class VerifiedEngine(StrEnum):
    """The code under test: one of the two engines that jobs can choose, or diffusers' own pipelines for comparison."""

    EXACT = "exact"
    TOOLKIT = "ai-toolkit"
    DIFFUSERS = "diffusers"


@dataclass(frozen=True)
class Outcome:
    """The result of one case.

    Attributes:
        type: a `CaseType`.
        dtype: `fp32`, `bf16`, or `-` if the case has no precision.
        error: error of the quantity nearest to its tolerance, or farthest beyond it; None if there is no measure.
        tolerance: tolerance of that quantity; None if the goldens state none.
        exact: true if every compared element is equal.
        detail: the largest error of each metric; for a failure, the quantities that failed or the exception.
    """

    type: str
    name: str
    dtype: str
    error: float | None
    tolerance: float | None
    exact: bool
    passed: bool
    detail: str


def format_line(outcome: Outcome, *, widths: tuple[int, int]) -> str:
    """Format one case as a line; `widths` are the widths of the columns type and name."""
    head = f"{outcome.type:<{widths[0]}}  {outcome.name:<{widths[1]}}  {outcome.dtype:<4}  "
    if not outcome.passed:
        return f"{head}FAIL   {outcome.detail}"
    if outcome.exact:
        return f"{head}exact"
    return f"{head}ok     {outcome.detail}"


def format_summary(outcomes: Sequence[Outcome]) -> str:
    """Format the two closing lines: how many cases are exact, and how many passed and failed."""
    passed, exact = (sum(getattr(outcome, name) for outcome in outcomes) for name in ("passed", "exact"))
    return f"{exact} of {len(outcomes)} exact\n{passed} passed, {len(outcomes) - passed} failed"


def format_json(outcomes: Sequence[Outcome], about: Mapping[str, str]) -> str:
    """Format all results as one JSON object; JSON has no NaN or infinity, so such an error becomes null."""
    records = [_record(outcome) for outcome in outcomes]
    counts = {
        "passed": sum(outcome.passed for outcome in outcomes),
        "failed": sum(not outcome.passed for outcome in outcomes),
        "exact": sum(outcome.exact for outcome in outcomes),
    }
    return json.dumps({**about, **counts, "outcomes": records}, indent=2, allow_nan=False)


def _record(outcome: Outcome) -> dict[str, Any]:
    record = asdict(outcome)
    if outcome.error is not None and not math.isfinite(outcome.error):
        record["error"] = None
    return record
