"""Read the folder that AI Toolkit leaves of a training run: its checkpoints, and the previews of its config.

Source:
    ai-toolkit's BaseSDTrainProcess.save, and BaseTrainProcess.save_training_config (jobs/process): checkpoints are
    `NAME_000000500.safetensors` with the step in 9 digits, the last one `NAME.safetensors`, next to `config.yaml`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from flux2_client.config_images import find_images
from shared.errors import ReferencesNeeded, RequestError, TrainingRunRefused
from shared.training_config.config_file import read_process
from shared.training_config.plan import ReplayPlan, plan_replay
from shared.training_config.samples import read_trigger_word

#: The trainer's copy of the config in the folder of a run.
CONFIG: Final = "config.yaml"
#: Label of the checkpoint that the trainer wrote last.
FINAL: Final = "final"

_SUFFIX: Final = ".safetensors"
# Of a config on this disk; the API has its own limits.
_MAX_SAMPLES: Final = 10_000
_MAX_TEXT_BYTES: Final = 64 * 1024**2


@dataclass(frozen=True)
class Checkpoint:
    """An adapter file of a training run; `label` is its step, or `final`."""

    path: Path
    label: str


@dataclass(frozen=True)
class TrainingRun:
    """What a sweep takes from a training run.

    Attributes:
        checkpoints: in the order of their steps, the final one last.
        prompts: entries of a request, complete as in the config; a reference image is a path of this host.
        multipliers: the strengths of the previews, each once.
        fields: further fields of the request: the model, how the adapter is applied, the trigger word.
        warnings: reasons why images may differ from the trainer's.
    """

    name: str
    checkpoints: tuple[Checkpoint, ...]
    prompts: tuple[dict[str, Any], ...]
    multipliers: tuple[float, ...]
    fields: Mapping[str, Any]
    warnings: tuple[str, ...]


def read_training_run(place: Path, *, image_folders: Sequence[Path] = ()) -> TrainingRun:
    """Read a run from its folder, or from its config.

    A config's run is in its own folder, or in the folder that its `training_folder` and name give: an absolute path, or
    one that begins at the current folder, at the config's folder or above it.

    Args:
        image_folders: where to look for reference images, see `find_images`.

    Raises:
        TrainingRunRefused: there is no config that can be read, or no checkpoint.
        ConfigImagesNotFound: reference images of the config's samples are not on this host.
    """
    config = place / CONFIG if place.is_dir() else place
    text = _read(config)
    try:
        name, process = read_process(text, max_bytes=_MAX_TEXT_BYTES)
        plan = _plan(text, config, image_folders)
        trigger = read_trigger_word(process)
    except RequestError as error:
        raise TrainingRunRefused(f"{config}: {error}") from error
    checkpoints = _find_checkpoints(name, _folders(config, name, process.get("training_folder")))
    first = plan.requests[0]
    return TrainingRun(
        name=name,
        checkpoints=checkpoints,
        prompts=tuple(plan.requests[request]["prompts"][index] for request, index in plan.positions),
        multipliers=tuple(request["loras"][0]["network_multiplier"] for request in plan.requests),
        fields={field: first.get(field) for field in ("model", "adapter_mode")} | {"trigger_word": trigger},
        warnings=plan.warnings,
    )


def _plan(text: str, config: Path, image_folders: Sequence[Path]) -> ReplayPlan:
    plan = partial(plan_replay, text, max_samples=_MAX_SAMPLES, max_text_bytes=_MAX_TEXT_BYTES)
    try:
        return plan()
    except ReferencesNeeded as error:
        found = find_images(error.images, config=config, folders=image_folders)
    return plan(images={image.name: str(image.path) for image in found})


def _read(config: Path) -> str:
    try:
        return config.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise TrainingRunRefused(f"{config} is not text in UTF-8: {error.reason} at byte {error.start}") from error
    except OSError as error:
        raise TrainingRunRefused(
            f"{config} cannot be read: {error.strerror or error}; give the folder that AI Toolkit wrote, or its config"
        ) from error


def _folders(config: Path, name: str, training_folder: object) -> Iterator[Path]:
    parent = config.resolve().parent
    yield parent
    if isinstance(training_folder, str) and "\0" not in training_folder:
        # An absolute folder is the same below each of them.
        yield from (start / training_folder / name for start in (Path.cwd(), parent, *parent.parents))


def _find_checkpoints(name: str, folders: Iterator[Path]) -> tuple[Checkpoint, ...]:
    """Return the checkpoints of the first folder that has some."""
    places = list(dict.fromkeys(folders))
    for folder in places:
        if found := dict(_checkpoints(name, folder)):
            return tuple(found[order] for order in sorted(found))
    raise TrainingRunRefused(
        f"no checkpoints of the run {name!r} are in {places[0]}; they are named {name}_000000500{_SUFFIX}, with the "
        f"step in 9 digits, and the last one {name}{_SUFFIX}"
    )


def _checkpoints(name: str, folder: Path) -> Iterator[tuple[tuple[bool, int], Checkpoint]]:
    """Yield the checkpoints in a folder, with what they are sorted by."""
    pattern = re.compile(rf"{re.escape(name)}(?:_(\d{{9}}))?{re.escape(_SUFFIX)}")
    try:
        files = sorted(folder.iterdir())
    except OSError:
        # A folder of the trainer's host.
        return
    for file in files:
        if (match := pattern.fullmatch(file.name)) is None or not file.is_file():
            continue
        is_final = match[1] is None
        step = 0 if is_final else int(match[1])
        yield (is_final, step), Checkpoint(file, FINAL if is_final else str(step))
