"""Run cases one by one: what a case raises is that case's failure, and the next one runs all the same."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import diffusers
import torch
import transformers
from safetensors import SafetensorError

from shared.errors import Flux2Error
from worker.device import pick_device
from worker.rendering.toolkit_checkout import load_toolkit
from worker.verify import checks, toolkit_comparison
from worker.verify.golden_models import GoldenModels
from worker.verify.goldens import Case, Goldens
from worker.verify.measures import Measure, outcome
from worker.verify.outcome import CaseType, Outcome, Precision, VerifiedEngine

# What a product that is wrong, or a golden that is damaged, may raise.
_FAILURES = (Flux2Error, SafetensorError, OSError, LookupError, ArithmeticError, ValueError, RuntimeError)


_OF_STOCK = (CaseType.FORWARD, CaseType.SAMPLING)


@dataclass(frozen=True)
class Verification:
    """A verification that has begun.

    Attributes:
        about: what is compared with what.
        widths: of the columns type and name.
        outcomes: runs a case each time the next one is asked for.
    """

    about: dict[str, str]
    widths: tuple[int, int]
    outcomes: Iterator[Outcome]


def start_verification(
    folder: Path,
    *,
    only: CaseType | None,
    dtype: Precision | None,
    device: str,
    verified: VerifiedEngine = VerifiedEngine.EXACT,
    against_toolkit: bool = False,
    toolkit: Path | None = None,
) -> Verification:
    """Choose the cases of a folder, to be held to its numbers, or to AI Toolkit's classes run here.

    Args:
        verified: whose code is held to them; diffusers' pipelines run no other types than forward and sampling.
        toolkit: checkout of AI Toolkit, where either side is that.

    Raises:
        GoldensError: it is no folder of goldens, or has no such case.
        CheckpointError: there is no such device, or no checkout of AI Toolkit at `toolkit`.
    """
    classes = load_toolkit(toolkit) if toolkit else None
    own = classes if verified is VerifiedEngine.TOOLKIT else None
    product = GoldenModels(Goldens(folder), pick_device(device), verified=verified, toolkit=own)
    about = _about(product)
    if against_toolkit:
        assert classes is not None
        both = toolkit_comparison.ToolkitComparison(product, classes)
        chosen = toolkit_comparison.comparable_cases(product.goldens, only=only, dtype=dtype)
        outcomes = run_cases(chosen, both.check)
        about["against"] = f"AI Toolkit's classes in {toolkit}, run here"
    else:
        types = _OF_STOCK if verified is VerifiedEngine.DIFFUSERS else tuple(CaseType)
        chosen = product.goldens.cases(only=only, dtype=dtype, types=types)
        outcomes = run_cases(chosen, lambda case: checks.check(case, product))
    widths = max(len(case.type) for case in chosen), max(len(case.name) for case in chosen)
    return Verification(about, widths, outcomes)


def run_cases(cases: Sequence[Case], check: Callable[[Case], Sequence[Measure]]) -> Iterator[Outcome]:
    """Yield an outcome for each case, in order."""
    for case in cases:
        try:
            measures = check(case)
        except _FAILURES as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            yield Outcome(case.type, case.name, case.dtype, None, None, exact=False, passed=False, detail=reason)
        else:
            yield outcome(case.type, case.name, case.dtype, measures)


def _about(product: GoldenModels) -> dict[str, str]:
    """Say what is compared with what, and what may explain a difference: versions and kernels."""
    goldens = product.goldens
    return {
        "goldens": str(goldens.folder),
        "engine": product.verified.value,
        "made_with": f"{goldens.manifest.get('source')} {goldens.manifest.get('commit')}, "
        f"torch {goldens.manifest.get('torch')} on {goldens.manifest.get('device')}",
        "here": f"torch {torch.__version__}, diffusers {diffusers.__version__}, "
        f"transformers {transformers.__version__} on {_device_name(product.device)}",
    }


def _device_name(device: torch.device) -> str:
    """Return what decides which kernels run."""
    if device.type == "cuda":
        return f"{device} {torch.cuda.get_device_name(device)}"
    return f"{device} {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
