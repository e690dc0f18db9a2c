"""Find a checkpoint's files: in a folder, or in a Hugging Face repository that is downloaded first.

Two layouts are known: BFL's single files, which AI Toolkit loads and which are preferred where both lie, and diffusers'
folders. What is in the files is not looked at here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from huggingface_hub import hf_hub_download, snapshot_download

from shared.catalog import MODELS, Model
from shared.errors import CheckpointError
from shared.settings import ModelSettings
from worker.checkpoint.fill import TensorFiles, Tensors

_DIFFUSERS_WEIGHTS = "diffusion_pytorch_model.safetensors"
# Mistral's repositories hold the weights twice; `consolidated*` is the copy that transformers does not read.
_TEXT_ENCODER_FILES = ("*.json", "*.jinja", "model*.safetensors")


Layout = Literal["bfl", "diffusers"]


class ModuleSource(Protocol):
    """What the transformer or the autoencoder is loaded from.

    Attributes:
        layout: `bfl` tensors have BFL's names and no configuration; `diffusers` ones lie beside a config.json.
    """

    @property
    def layout(self) -> Layout: ...

    @property
    def config(self) -> Path | None: ...

    def open(self) -> Tensors:
        """Return the tensors, none of them read yet."""


@dataclass(frozen=True)
class ModuleFiles:
    """The files of the transformer or of the autoencoder: the usual `ModuleSource`."""

    layout: Layout
    weights: tuple[Path, ...]
    config: Path | None = None

    def open(self) -> TensorFiles:
        """Read the files' headers.

        Raises:
            CheckpointError: a file cannot be read as safetensors.
        """
        return TensorFiles(self.weights)


@dataclass(frozen=True)
class Checkpoint:
    """Everything one model is loaded from; `commit` is the hub's, where the files came from there."""

    transformer: ModuleFiles
    autoencoder: ModuleFiles
    text_encoder: Path
    commit: str | None

    def files(self) -> dict[str, Path]:
        """Name every file that decides a pixel, independent of where it lies."""
        named = {}
        for role, module in (("transformer", self.transformer), ("autoencoder", self.autoencoder)):
            for file in (*module.weights, *([module.config] if module.config else [])):
                named[f"{role}/{file.name}"] = file
        for pattern in _TEXT_ENCODER_FILES:
            for file in self.text_encoder.glob(pattern):
                named[f"text_encoder/{file.name}"] = file
        return named


def locate_checkpoint(settings: ModelSettings, *, hf_token: str | None) -> Checkpoint:
    """Locate, or download, what `settings` names.

    Raises:
        CheckpointError: a folder or repository lacks a file, or cannot be reached.
    """
    if settings.id not in MODELS:
        raise CheckpointError(f"no model {settings.id!r} in the catalogue; known are {sorted(MODELS)}")
    model = MODELS[settings.id]
    path = settings.path or model.base_model
    text_encoder = settings.text_encoder or model.text_encoder
    if Path(path).is_dir():
        transformer = _in_folder(Path(path), "transformer", model.transformer_file)
        autoencoder = _local_autoencoder(Path(path), model, hf_token)
        commit = None
    else:
        file = _download(path, model.transformer_file, settings.revision, hf_token)
        transformer, commit = ModuleFiles("bfl", (file,)), file.parent.name
        autoencoder = _hub_autoencoder(model, path, settings.revision, hf_token)
    return Checkpoint(transformer, autoencoder, _text_encoder(text_encoder, hf_token), commit)


def _local_autoencoder(folder: Path, model: Model, hf_token: str | None) -> ModuleFiles:
    try:
        return _in_folder(folder, "vae", model.autoencoder_file)
    except _NotInFolder:
        if model.autoencoder_repository is None:
            raise
        return _hub_autoencoder(model, model.base_model, None, hf_token)


def _hub_autoencoder(model: Model, repository: str, revision: str | None, hf_token: str | None) -> ModuleFiles:
    """Download from the catalogue's own repository, where the model has one, or from that of its transformer."""
    if model.autoencoder_repository is not None:
        repository, revision = model.autoencoder_repository, None  # the setting is a revision of the other one
    return ModuleFiles("bfl", (_download(repository, model.autoencoder_file, revision, hf_token),))


class _NotInFolder(CheckpointError):
    """The folder has the module in neither layout."""


def _in_folder(folder: Path, module: str, single_file: str) -> ModuleFiles:
    if (folder / single_file).is_file():
        return ModuleFiles("bfl", (folder / single_file,))
    config = folder / module / "config.json"
    if not config.is_file():
        raise _NotInFolder(f"{folder}: neither {single_file} nor {module}/config.json is there")
    return ModuleFiles("diffusers", _diffusers_weights(folder / module), config)


def _diffusers_weights(folder: Path) -> tuple[Path, ...]:
    if (folder / _DIFFUSERS_WEIGHTS).is_file():
        return (folder / _DIFFUSERS_WEIGHTS,)
    index = folder / f"{_DIFFUSERS_WEIGHTS}.index.json"
    if not index.is_file():
        raise CheckpointError(f"{folder}: neither {_DIFFUSERS_WEIGHTS} nor {index.name} is there")
    try:
        shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{index}: not an index of weights") from error
    absent = [shard for shard in shards if not (folder / shard).is_file()]
    if absent or not shards:
        raise CheckpointError(f"{folder}: {absent[0] if absent else 'every shard'} of {index.name} is missing")
    return tuple(folder / shard for shard in shards)


def _text_encoder(name: str, hf_token: str | None) -> Path:
    folder = Path(name)
    if not folder.is_dir():
        try:
            folder = Path(snapshot_download(name, allow_patterns=list(_TEXT_ENCODER_FILES), token=hf_token))
        except (OSError, ValueError) as error:
            raise CheckpointError(_unreachable(name, "the text encoder", error)) from error
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder}: no config.json; the text encoder is a Hugging Face folder")
    return folder


def _download(repository: str, file: str, revision: str | None, hf_token: str | None) -> Path:
    try:
        return Path(hf_hub_download(repository, file, revision=revision, token=hf_token))
    except (OSError, ValueError) as error:  # network and repository errors; malformed repository ids
        raise CheckpointError(_unreachable(repository, file, error)) from error


def _unreachable(name: str, what: str, error: Exception) -> str:
    return f"{name!r} is no folder here, and {what} could not be had from the hub: {error}"
