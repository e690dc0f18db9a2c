"""Compose the body of `POST /v1/sweeps` from the options of `flux2 sweep`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from flux2_client.composition import parse_numbers, parse_seeds, parse_size
from flux2_client.request_source import Description
from flux2_client.sweeps.training_run import Checkpoint, TrainingRun

# No address begins like this: a colon ends its scheme.
_LABELED: Final = re.compile(r"([^=/:\\]+)=(.+)")
_BASE: Final = {"path": None, "label": "base"}


@dataclass(frozen=True)
class SweepAxes:
    """The values of the axes as options give them, with commas between them; None for an option that was not given."""

    multipliers: str | None = None
    seeds: str | None = None
    sizes: str | None = None
    steps: str | None = None
    guidance_scales: str | None = None

    def parse(self) -> dict[str, list[Any]]:
        """Return the axes that were given, by the fields of the body.

        Raises:
            ValueError: a value is unsound.
        """
        parsers: dict[str, Callable[[str], list[Any]]] = {
            "multipliers": _parse_floats,
            "seeds": parse_seeds,
            "sizes": _parse_sizes,
            "steps": lambda text: parse_numbers(text, int),
            "guidance_scales": _parse_floats,
        }
        given = {name: getattr(self, name) for name in parsers}
        return {name: parsers[name](text) for name, text in given.items() if text is not None}


@dataclass(frozen=True)
class ComposedSweep:
    """The body of a sweep.

    Attributes:
        files: checkpoints that are files of this host, by their index in the body.
    """

    body: Mapping[str, Any]
    files: Mapping[int, Path]

    def with_paths(self, paths: Mapping[Path, str]) -> dict[str, Any]:
        """Return the body with the paths by which the service knows the files."""
        checkpoints = [
            {**checkpoint, "path": paths[self.files[index]]} if index in self.files else checkpoint
            for index, checkpoint in enumerate(self.body["checkpoints"])
        ]
        return {**self.body, "checkpoints": checkpoints}


def compose_sweep(
    described: Description,
    axes: SweepAxes,
    *,
    checkpoints: Sequence[str] = (),
    run: TrainingRun | None = None,
    with_base: bool = False,
) -> ComposedSweep:
    """Compose a sweep.

    Args:
        described: prompts, adapters of every image, and fields of the request. Without prompts, those of `run` count.
        checkpoints: each a path or an address, or `LABEL=PATH`; a path of this host is a file to upload.
        run: its checkpoints come before `checkpoints`.
        with_base: whether the base model is compared too.

    Raises:
        ValueError: an option is unsound, or nothing was given to render or to compare.
        OSError: the file of prompts cannot be read.
    """
    has_prompts = bool(described.prompts or described.prompts_file)
    if not has_prompts and run is None:
        raise ValueError("nothing to render; give -p PROMPT, --prompts FILE, or --training-run FOLDER")
    given = axes.parse()
    if run is not None and "multipliers" not in given and not has_prompts:
        given["multipliers"] = _multipliers(run)
    request = described.compose()
    if run is not None:
        request = {**{name: value for name, value in run.fields.items() if value is not None}, **request}
    named = [*(run.checkpoints if run else ()), *map(_parse_checkpoint, checkpoints)]
    entries = [dict(_BASE)] if with_base else []
    files: dict[int, Path] = {}
    numbers: dict[Path, int] = {}
    for checkpoint in named:
        if isinstance(checkpoint, Checkpoint):
            files[len(entries)] = checkpoint.path
            # Files of two runs may have one name, and an estimate would take them for one file.
            number = numbers.setdefault(checkpoint.path, len(numbers))
            entries.append({"path": f"{number}/{checkpoint.path.name}", "label": checkpoint.label})
        else:
            entries.append(checkpoint)
    return ComposedSweep({**request, "checkpoints": entries, **given}, files)


def _multipliers(run: TrainingRun) -> list[float]:
    if len(run.multipliers) > 1:
        values = ",".join(f"{value:g}" for value in run.multipliers)
        raise ValueError(f"the samples of the run's config have several multipliers; give --multiplier, e.g. {values}")
    return list(run.multipliers)


def _parse_checkpoint(text: str) -> Checkpoint | dict[str, Any]:
    if Path(text).is_file():
        return Checkpoint(Path(text), Path(text).name.removesuffix(".safetensors"))
    match = _LABELED.fullmatch(text)
    if match is None:
        return {"path": text}
    label, path = match.groups()
    return Checkpoint(Path(path), label) if Path(path).is_file() else {"path": path, "label": label}


def _parse_floats(text: str) -> list[float]:
    return parse_numbers(text, float)


def _parse_sizes(text: str) -> list[dict[str, int]]:
    return [dict(zip(("width", "height"), parse_size(part), strict=True)) for part in text.split(",")]
