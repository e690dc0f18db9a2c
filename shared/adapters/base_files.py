"""Read which linear layers a base model has, from the headers of its files, wherever and however they are stored.

A place is a transformer's file, a folder of diffusers' weights, a model's folder, or a repository in the hub's cache.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from shared.adapters.header import read_header
from shared.adapters.names import parse_target
from shared.catalog import MODELS, Model
from shared.diffusers_files import INDEX_SUFFIX, WEIGHTS, read_index
from shared.errors import AdapterNotFound, AdapterRefused
from shared.model_places import relatives_of, stated_distilled

# No limit: only the header of a checkpoint is read.
_ANY_SIZE = 2**62
_WEIGHT = ".weight"


def find_base_files(place: Path) -> tuple[Path, ...]:
    """Return the files of the transformer at a place; several if diffusers has split it.

    Raises:
        AdapterNotFound: the place holds no transformer, or not all files of it; the message names what is missing.
    """
    if place.is_file():
        return (place,)
    place = _snapshot(place)
    single = [place / model.transformer_file for model in MODELS.values() if (place / model.transformer_file).is_file()]
    if single:
        # As for a worker, Black Forest Labs' file comes first.
        return (single[0],)
    folder = place / "transformer" if (place / "transformer").is_dir() else place
    if (folder / WEIGHTS).is_file():
        return (folder / WEIGHTS,)
    index = folder / (WEIGHTS + INDEX_SUFFIX)
    if not index.is_file():
        raise AdapterNotFound(
            f"--base {place}: the folder holds neither {MODELS['flux2'].transformer_file} or another model's file, nor "
            f"transformer/{WEIGHTS} or its index; name a model's folder or a transformer's file"
        )
    shards = [folder / name for name in _shards(index)]
    absent = [shard.name for shard in shards if not shard.is_file()]
    if absent:
        raise AdapterNotFound(f"--base {place}: {absent[0]} of {index.name} is missing; download the folder again")
    return tuple(shards)


def read_linear_layers(files: Iterable[Path]) -> dict[str, tuple[int, int]]:
    """Return (out, in) of each linear layer of a transformer, by Black Forest Labs' name.

    Raises:
        AdapterRefused: a file is not a safetensors file, or the files hold no layer of FLUX.2.
    """
    files = tuple(files)
    layers = {}
    for file in files:
        for name, tensor in read_header(file, max_bytes=_ANY_SIZE).tensors.items():
            target = parse_target(name.removesuffix(_WEIGHT)) if name.endswith(_WEIGHT) else None
            if target is not None and len(tensor.shape) == 2:
                rows = tensor.shape[0] * target.rows.part_count // len(target.rows.parts)
                layers[target.layer] = (rows, tensor.shape[1])
    if not layers:
        raise AdapterRefused(f"--base {files[0]} holds no linear layer of FLUX.2; name the file of a transformer")
    return layers


def narrow_model(model: Model, files: Iterable[Path]) -> Model:
    """Return the model itself or the one that differs from it only by distillation, by what the files' place says."""
    for file in files:
        # The hub's cache has a folder for each repository.
        folders = {part.lower() for part in file.parts}
        for relative in relatives_of(model):
            repository = f"models--{relative.base_model.replace('/', '--')}".lower()
            if file.name == relative.transformer_file or repository in folders:
                return relative
        for folder in list(file.parents)[:2]:
            stated = stated_distilled(folder / "model_index.json")
            if stated is not None:
                return next((each for each in relatives_of(model) if bool(each.distilled_from) == stated), model)
    return model


def _snapshot(place: Path) -> Path:
    """Return the current snapshot of a repository in the hub's cache; any other folder is returned as it is."""
    if not place.name.startswith("models--") or not (place / "snapshots").is_dir():
        return place
    main = place / "refs" / "main"
    snapshots = sorted(path.name for path in (place / "snapshots").iterdir())
    revision = main.read_text().strip() if main.is_file() else snapshots[-1] if len(snapshots) == 1 else ""
    if not re.fullmatch(r"[0-9a-zA-Z._-]+", revision) or revision not in snapshots:
        raise AdapterNotFound(f"--base {place}: which snapshot is meant? name one of the folders in {place}/snapshots")
    return place / "snapshots" / revision


def _shards(index: Path) -> list[str]:
    try:
        names = read_index(index)
    except (OSError, ValueError) as error:
        raise AdapterNotFound(f"--base {index}: not an index of weights; download it again") from error
    if not names:
        raise AdapterNotFound(f"--base {index}: lists no file; download it again")
    return names
