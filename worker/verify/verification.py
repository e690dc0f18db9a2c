"""Run the cases of a folder one by one; an exception fails one case only, and the next case still runs."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import diffusers
import PIL
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

# Errors that wrong code or a damaged golden may raise; any other ends the run.
_FAILURES = (Flux2Error, SafetensorError, OSError, LookupError, ArithmeticError, ValueError, RuntimeError)

_DIFFUSERS_TYPES = (CaseType.FORWARD, CaseType.SAMPLING)


@dataclass(frozen=True)
class Verification:
    """A verification in progress.

    Attributes:
        about: the two sides of the comparison and the versions here, by label.
        widths: widths of the columns type and name.
        outcomes: a lazy iterator; each step runs one case.
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
    engine: VerifiedEngine = VerifiedEngine.EXACT,
    against_toolkit: bool = False,
    toolkit: Path | None = None,
) -> Verification:
    """Select the cases of a folder and return a verification that runs them lazily.

    Args:
        engine: the code under test; diffusers' pipelines run only cases of type forward and sampling.
        against_toolkit: compare with AI Toolkit's classes, run here, instead of the folder's stored numbers.
        toolkit: checkout of AI Toolkit; needed if either side of the comparison runs its code.

    Raises:
        GoldensError: `folder` holds no goldens, or no case matches the selection.
        CheckpointError: this host has no such device, or `toolkit` is no checkout of AI Toolkit.
    """
    classes = load_toolkit(toolkit) if toolkit else None
    engine_classes = classes if engine is VerifiedEngine.TOOLKIT else None
    models = GoldenModels(Goldens(folder), pick_device(device), engine_name=engine, toolkit=engine_classes)
    about = _about(models)
    if against_toolkit:
        assert classes is not None
        comparison = toolkit_comparison.ToolkitComparison(models, classes)
        chosen = toolkit_comparison.comparable_cases(models.goldens, only=only, dtype=dtype)
        outcomes = run_cases(chosen, comparison.check)
        about["against"] = f"AI Toolkit's classes in {toolkit}, run here"
    else:
        types = _DIFFUSERS_TYPES if engine is VerifiedEngine.DIFFUSERS else tuple(CaseType)
        chosen = models.goldens.cases(only=only, dtype=dtype, types=types)
        outcomes = run_cases(chosen, lambda case: checks.check(case, models))
    widths = max(len(case.type) for case in chosen), max(len(case.name) for case in chosen)
    return Verification(about, widths, outcomes)


def run_cases(cases: Sequence[Case], check: Callable[[Case], Sequence[Measure]]) -> Iterator[Outcome]:
    """Run the cases in order and yield the outcome of each."""
    for case in cases:
        try:
            measures = check(case)
        except _FAILURES as error:
            # Each case prints one line, so line breaks in the message become spaces.
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            yield Outcome(case.type, case.name, case.dtype, None, None, exact=False, passed=False, detail=reason)
        else:
            yield outcome(case.type, case.name, case.dtype, measures)


def _about(models: GoldenModels) -> dict[str, str]:
    """Name both sides of the comparison, and the versions and kernels that may explain a difference."""
    goldens = models.goldens
    return {
        "goldens": str(goldens.folder),
        "engine": models.engine_name.value,
        "made_with": f"{goldens.manifest.get('source')} {goldens.manifest.get('commit')}, "
        f"torch {goldens.manifest.get('torch')} on {goldens.manifest.get('device')}",
        "here": f"torch {torch.__version__}, diffusers {diffusers.__version__}, "
        f"transformers {transformers.__version__}, Pillow {PIL.__version__} on {_device_name(models.device)}",
    }


def _device_name(device: torch.device) -> str:
    """Return the device and its model or instruction set, which decide the kernels."""
    if device.type == "cuda":
        return f"{device} {torch.cuda.get_device_name(device)}"
    return f"{device} {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
