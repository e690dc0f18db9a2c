"""Turn the best image of a sweep into a new request."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from flux2_client.composition import compose_prompts
from flux2_client.reproduction import read_image_parameters, request_of
from flux2_client.sweeps.grid import SavedCell, SavedSweep, Value
from shared.errors import SweepFolderRefused

#: The file that the viewer's button downloads.
BEST_FILE: Final = "best.json"

# What a pick decides; seeds and prompts of a sweep are there to judge it by.
_DECIDED: Final = ("checkpoint", "multiplier", "size", "steps", "guidance_scale")
# What a new prompt takes from the picked image; the seed and the references belong to the image's own prompt.
_KEPT_FIELDS: Final = ("width", "height", "sample_steps", "sigmas", "guidance_scale", "neg")


def read_pick(text: str | None, sweep: SavedSweep, folder: Path) -> dict[str, Value]:
    """Return the values that were picked, by their axes.

    Args:
        text: name of a file that the viewer downloaded, or `CHECKPOINT:MULTIPLIER`, or `CHECKPOINT` if the sweep has
            one image of each prompt and seed of it; None is `best.json` in the folder.

    Raises:
        SweepFolderRefused: there is no such file or image, or the file is of another sweep.
    """
    file = folder / BEST_FILE if text is None else Path(text)
    if text is None and not file.is_file():
        raise SweepFolderRefused(
            f"{folder} holds no {BEST_FILE}: pick an image in its index.html and put the download there"
            + (f", or give --pick {_example(sweep)}" if sweep.values("checkpoint") else "")
        )
    return _read_file(file, sweep) if file.is_file() else _parse(str(text), sweep)


def best_request(
    sweep: SavedSweep,
    folder: Path,
    picked: Mapping[str, Value],
    *,
    prompts: Sequence[Mapping[str, Any]] = (),
    seeds: Sequence[int] = (),
) -> dict[str, Any]:
    """Return the request that renders with what was picked.

    It names the adapters by their sha256 too: a file that has changed since is refused.

    Args:
        prompts: entries of the new request; empty for the prompts and seeds of the sweep.
        seeds: of each new prompt; empty for the API's defaults.

    Raises:
        SweepFolderRefused: no image with these values was finished.
        ReproductionFailed: a file lacks the parameters that made it.
    """
    cells = [cell for cell in sweep.cells if cell.file and _fits(cell, picked)]
    if not cells:
        raise SweepFolderRefused(f"no image of the sweep was finished with {_describe(picked)}; pick another one")
    requests = [request_of(read_image_parameters(folder / str(cell.file))) for cell in cells]
    own = [prompt for request in requests for prompt in request["prompts"]]
    if prompts:
        fields = {name: own[0][name] for name in _KEPT_FIELDS if name in own[0]}
        own = compose_prompts(prompts, seeds=seeds, fields=fields)
    return {**requests[0], "prompts": [json.loads(text) for text in dict.fromkeys(map(json.dumps, own))]}


def _fits(cell: SavedCell, picked: Mapping[str, Value]) -> bool:
    return all(getattr(cell, name) == value for name, value in picked.items())


def _read_file(file: Path, sweep: SavedSweep) -> dict[str, Value]:
    try:
        content = json.loads(file.read_bytes())
        sweep_id, values = content["sweep_id"], content["best"]
        picked = {name: values[name] for name in _DECIDED}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SweepFolderRefused(f"{file} is not the download of a sweep's page: {error!r}; pick again") from error
    if sweep_id != sweep.sweep_id:
        raise SweepFolderRefused(
            f"{file} picks an image of the sweep {sweep_id}, and the folder holds {sweep.sweep_id}"
        )
    return picked


def _parse(text: str, sweep: SavedSweep) -> dict[str, Value]:
    checkpoint, colon, multiplier = text.rpartition(":")
    for label, number in [(checkpoint, multiplier)] if colon else []:
        pairs = [(cell.checkpoint, cell.multiplier) for cell in sweep.cells]
        if (label, _number(number)) in pairs:
            return {"checkpoint": label, "multiplier": _number(number)}
    # A label may have a colon in it.
    multipliers = {cell.multiplier for cell in sweep.cells if cell.checkpoint == text}
    if len(multipliers) == 1:
        return {"checkpoint": text, "multiplier": multipliers.pop()}
    if multipliers:
        raise SweepFolderRefused(
            f"{text!r} was rendered at several multipliers; give one, e.g. --pick {_example(sweep)}"
        )
    known = ", ".join(map(str, sweep.values("checkpoint"))) or "none"
    raise SweepFolderRefused(
        f"{text!r} is neither a file nor CHECKPOINT:MULTIPLIER of this sweep; its checkpoints are: {known}"
    )


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _example(sweep: SavedSweep) -> str:
    cell = next((cell for cell in sweep.cells if cell.multiplier is not None), sweep.cells[0])
    return str(cell.checkpoint) if cell.multiplier is None else f"{cell.checkpoint}:{cell.multiplier:g}"


def _describe(picked: Mapping[str, Value]) -> str:
    return ", ".join(f"{name} {value}" for name, value in picked.items() if value is not None)
