"""AI Toolkit's own FLUX.2 classes, from a checkout that the user has; nothing of it is part of this project.

Only the four files of extensions_built_in/diffusion_models/flux2/src are imported, by their place: the packages above
them import every model family and dozens of packages. torchvision, which `sampling.py` uses for control images alone,
is stood in for while that file is imported, if it is not installed.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import transformers

from shared.errors import CheckpointError

_FOLDER = Path("extensions_built_in/diffusion_models/flux2/src")
# In the order of their imports of each other; what is used of each.
_CLASSES = {
    "model": ("Flux2", "Flux2Params"),
    "autoencoder": ("AutoEncoder", "AutoEncoderParams", "AutoEncoderSmallDecoderParams"),
    "sampling": ("get_schedule",),
    "pipeline": ("Flux2Pipeline",),
}


@dataclass(frozen=True)
class Toolkit:
    """What is used of a checkout, under its own names.

    Attributes:
        root: the checkout.
        transformer: Flux2(Flux2Params); its weights have BFL's names.
        autoencoder: AutoEncoder(AutoEncoderParams).
        small_decoder_params: AutoEncoderSmallDecoderParams, whose decoder has a width of its own.
        pipeline: Flux2Pipeline, the loop that previews run.
    """

    root: Path
    transformer: Any
    transformer_params: Any
    autoencoder: Any
    autoencoder_params: Any
    small_decoder_params: Any
    get_schedule: Any
    pipeline: Any


def load_toolkit(root: Path) -> Toolkit:
    """Import AI Toolkit's classes from the checkout at `root`.

    Raises:
        CheckpointError: no checkout is there, it lacks a file or a class, or a package that it needs is not installed.
    """
    folder = (root / _FOLDER).resolve()
    for name in _CLASSES:
        if not (folder / f"{name}.py").is_file():
            raise CheckpointError(f"{root}: no checkout of AI Toolkit with FLUX.2: {_FOLDER / name}.py is not there")
    # pipeline.py imports these; resolved here, because transformers looks for torchvision meanwhile and remembers it.
    _ = transformers.AutoProcessor, transformers.Mistral3ForConditionalGeneration
    package = _package(folder)
    modules = {name: _module(f"{package}.{name}", root) for name in _CLASSES}
    found = {used: _attribute(modules[name], used, root) for name, names in _CLASSES.items() for used in names}
    return Toolkit(
        root=root,
        transformer=found["Flux2"],
        transformer_params=found["Flux2Params"],
        autoencoder=found["AutoEncoder"],
        autoencoder_params=found["AutoEncoderParams"],
        small_decoder_params=found["AutoEncoderSmallDecoderParams"],
        get_schedule=found["get_schedule"],
        pipeline=found["Flux2Pipeline"],
    )


def _package(folder: Path) -> str:
    """Register an empty package over `folder`, so that the files' imports of each other work; return its name."""
    name = f"flux2_of_ai_toolkit_{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}"
    if name not in sys.modules:
        package = ModuleType(name)
        package.__path__ = [str(folder)]
        sys.modules[name] = package
    return name


def _module(name: str, root: Path) -> ModuleType:
    try:
        with _torchvision_or_stand_in(wanted=name.endswith(".sampling")):
            return importlib.import_module(name)
    except ImportError as error:
        missing = f"install {error.name}" if error.name and not error.name.startswith("flux2_of") else str(error)
        raise CheckpointError(
            f"{root}: {name.rpartition('.')[2]}.py of AI Toolkit cannot be imported: {missing}"
        ) from error
    except SyntaxError as error:
        raise CheckpointError(f"{root}: {error.filename}:{error.lineno} is not Python: {error.msg}") from error


@contextmanager
def _torchvision_or_stand_in(*, wanted: bool) -> Iterator[None]:
    """Put an empty module in torchvision's place, for one import, if it is not installed."""
    if not wanted or "torchvision" in sys.modules or importlib.util.find_spec("torchvision"):
        yield
        return
    sys.modules["torchvision"] = ModuleType("torchvision")
    try:
        yield
    finally:
        del sys.modules["torchvision"]


def _attribute(module: ModuleType, name: str, root: Path) -> Any:
    if not hasattr(module, name):
        raise CheckpointError(
            f"{root}: {module.__file__} has no {name}; this is not a version of AI Toolkit known here"
        )
    return getattr(module, name)
