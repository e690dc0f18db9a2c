"""Locate a checkpoint's files: in a folder, or in a Hugging Face repository, which is downloaded first.

A transformer or autoencoder is in one of two layouts: Black Forest Labs' single files, which AI Toolkit loads and which
win if a folder holds both, or diffusers' folders. Nothing here reads a tensor.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol

from huggingface_hub import hf_hub_download, is_offline_mode, snapshot_download
from huggingface_hub.errors import RemoteEntryNotFoundError

from shared.catalog import MODELS, Model
from shared.diffusers_files import INDEX_SUFFIX, WEIGHTS, read_index
from shared.errors import CheckpointError
from shared.model_places import check_model_places
from shared.settings import ModelSettings
from worker.checkpoint.download_log import DownloadLog
from worker.checkpoint.hub_cache import offline_problem
from worker.checkpoint.revision import revision_of
from worker.checkpoint.tensor_files import TensorFiles, Tensors

# The hub's library prints its messages itself, and this project's handler would print them again.
logging.getLogger("huggingface_hub").handlers.clear()

# Mistral's repositories hold the weights twice; `consolidated*` is the copy that transformers does not read.
_TEXT_ENCODER_FILES = ("*.json", "*.jinja", "model*.safetensors")


Layout = Literal["bfl", "diffusers"]


class ModuleSource(Protocol):
    """A source of the tensors of the transformer or the autoencoder.

    Attributes:
        layout: `bfl` files have Black Forest Labs' tensor names and no configuration; `diffusers` files have diffusers'
            names and a config.json.
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
        """Return the tensors; the first call reads the files' headers, later calls return the same object.

        Raises:
            CheckpointError: a file cannot be read as safetensors.
        """
        return self._tensors

    @cached_property
    def _tensors(self) -> TensorFiles:
        return TensorFiles(self.weights)


@dataclass(frozen=True)
class TextEncoderFiles:
    """A Hugging Face folder with a language model and its tokenizer."""

    folder: Path

    @cached_property
    def weights(self) -> tuple[Path, ...]:
        """The safetensors files.

        Raises:
            CheckpointError: the index of the files cannot be read.
        """
        index = self.folder / "model.safetensors.index.json"
        if not index.is_file():
            return (self.folder / "model.safetensors",)
        return tuple(self.folder / name for name in _shards(index))

    def open(self) -> TensorFiles:
        """Return the tensors; see `ModuleFiles.open`."""
        return self._tensors

    @cached_property
    def _tensors(self) -> TensorFiles:
        return TensorFiles(self.weights)


@dataclass(frozen=True)
class Checkpoint:
    """The files of one model; `commit` is the hub's, for files that came from there."""

    transformer: ModuleFiles
    autoencoder: ModuleFiles
    text_encoder: TextEncoderFiles
    commit: str | None

    def files(self) -> dict[str, Path]:
        """Return every file that affects an image, under a name that does not depend on its folder."""
        named = {}
        for role, module in (("transformer", self.transformer), ("autoencoder", self.autoencoder)):
            for file in (*module.weights, *([module.config] if module.config else [])):
                named[f"{role}/{file.name}"] = file
        for pattern in _TEXT_ENCODER_FILES:
            for file in self.text_encoder.folder.glob(pattern):
                named[f"text_encoder/{file.name}"] = file
        return named

    def revision(self) -> str:
        """Return the revision, which names the files' content; see `worker.checkpoint.revision`.

        Raises:
            CheckpointError: a file cannot be read as safetensors, or has changed since its header was read.
        """
        parts = (self.transformer, self.autoencoder, self.text_encoder)
        headers = {file: header for part in parts for file, header in part.open().headers.items()}
        # Loading takes minutes, and a header that no longer fits its file gives weights from wrong places.
        for file, header in headers.items():
            header.check_unchanged(file)
        return revision_of(self.files(), commit=self.commit, headers=headers)


def locate_checkpoint(settings: ModelSettings, *, hf_token: str | None) -> Checkpoint:
    """Locate the files that `settings` names; download those that are not on this host.

    Raises:
        CheckpointError: a folder or repository lacks a file, cannot be reached, or holds another model.
    """
    if settings.id not in MODELS:
        raise CheckpointError(f"unknown model id {settings.id!r}; set FLUX2_MODEL_ID to one of {sorted(MODELS)}")
    check_model_places(settings)
    model = MODELS[settings.id]
    path = settings.path or model.base_model
    text_encoder = settings.text_encoder or model.text_encoder
    # A folder of that name wins over a repository with the same id, so that a copy on this host is never downloaded.
    if Path(path).is_dir():
        transformer = _in_folder(Path(path), "transformer", model.transformer_file)
        autoencoder = _local_autoencoder(Path(path), model, hf_token)
        commit = None
    else:
        file = _download(path, model.transformer_file, settings.revision, hf_token)
        # The hub's cache names the folder of a snapshot after its commit.
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
    """Download from the autoencoder's repository in the catalogue, or else from the transformer's repository."""
    if model.autoencoder_repository is not None:
        # FLUX2_MODEL_REVISION names a revision of the transformer's repository.
        repository, revision = model.autoencoder_repository, None
    return ModuleFiles("bfl", (_download(repository, model.autoencoder_file, revision, hf_token),))


class _NotInFolder(CheckpointError):
    """The folder holds the module in neither layout."""


def _in_folder(folder: Path, module: str, single_file: str) -> ModuleFiles:
    # BFL's file first: it is the one that AI Toolkit loads.
    if (folder / single_file).is_file():
        return ModuleFiles("bfl", (folder / single_file,))
    config = folder / module / "config.json"
    if not config.is_file():
        raise _NotInFolder(
            f"{folder} has neither {single_file} nor {module}/config.json; put the checkpoint's files there or change "
            "FLUX2_MODEL_PATH"
        )
    return ModuleFiles("diffusers", _diffusers_weights(folder / module), config)


def _diffusers_weights(folder: Path) -> tuple[Path, ...]:
    if (folder / WEIGHTS).is_file():
        return (folder / WEIGHTS,)
    index = folder / (WEIGHTS + INDEX_SUFFIX)
    if not index.is_file():
        raise CheckpointError(f"{folder} has neither {WEIGHTS} nor {index.name}; download the folder again")
    shards = _shards(index)
    absent = [shard for shard in shards if not (folder / shard).is_file()]
    if absent or not shards:
        raise CheckpointError(
            f"{folder}: {absent[0] if absent else 'every shard'} of {index.name} is missing; download the folder again"
        )
    return tuple(folder / shard for shard in shards)


def _shards(index: Path) -> list[str]:
    """Return the names of the files that an index lists."""
    try:
        return read_index(index)
    except ValueError as error:
        raise CheckpointError(f"{index} is not an index of weights; download it again") from error


def _text_encoder(name: str, hf_token: str | None) -> TextEncoderFiles:
    folder = Path(name)
    if not folder.is_dir():
        try:
            # Without the patterns, Mistral's second copy of the weights would be downloaded too.
            folder = Path(
                snapshot_download(
                    name, allow_patterns=list(_TEXT_ENCODER_FILES), token=hf_token, tqdm_class=DownloadLog
                )
            )
        except (OSError, ValueError) as error:
            raise CheckpointError(_download_problem(name, "the text encoder", error)) from error
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{folder} has no config.json; FLUX2_MODEL_TEXT_ENCODER must name a Hugging Face folder or repository"
        )
    return TextEncoderFiles(folder)


def _download(repository: str, file: str, revision: str | None, hf_token: str | None) -> Path:
    try:
        return Path(hf_hub_download(repository, file, revision=revision, token=hf_token, tqdm_class=DownloadLog))
    except RemoteEntryNotFoundError as error:
        raise CheckpointError(
            f"the repository {repository!r} has no {file}; set FLUX2_MODEL_ID to the model that it holds, or correct "
            "FLUX2_MODEL_PATH or FLUX2_MODEL_REVISION"
        ) from error
    except (OSError, ValueError) as error:  # network and repository errors; malformed repository ids
        raise CheckpointError(_download_problem(repository, file, error)) from error


def _download_problem(name: str, what: str, error: Exception) -> str:
    if is_offline_mode():
        return offline_problem(name, what)
    return f"{name!r} is not a folder on this host, and {what} could not be downloaded from the hub: {error}"
