"""Import AI Toolkit's FLUX.2 classes from the user's own checkout; this project contains none of its code.

Only the files that define those classes are imported, by path. During the import, an empty package replaces each
package that they name but do not need.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import transformers

from shared.errors import CheckpointError
from worker.rendering.reference_images import to_unit_tensor

_FLUX2 = Path("extensions_built_in/diffusion_models/flux2")
# The classes to import, by file; a file follows the files that it imports. Their packages are not imported, because
# those import every model family and dozens of libraries.
_CLASSES = {
    _FLUX2 / "src/model.py": ("Flux2", "Flux2Params"),
    _FLUX2 / "src/autoencoder.py": ("AutoEncoder", "AutoEncoderParams", "AutoEncoderSmallDecoderParams"),
    _FLUX2 / "src/sampling.py": ("get_schedule", "encode_image_refs"),
    _FLUX2 / "src/pipeline.py": ("Flux2Pipeline",),
    Path("toolkit/samplers/custom_flowmatch_sampler.py"): ("CustomFlowMatchEulerDiscreteScheduler",),
}
# Files that are parsed for a constant and never run.
_MODEL = _FLUX2 / "flux2_model.py"
_VERSION = Path("version.py")


@dataclass(frozen=True)
class Toolkit:
    """The classes and constants that this project uses from a checkout.

    Attributes:
        version: AI Toolkit's version.
        transformer: Flux2(Flux2Params); its weights have BFL's names.
        autoencoder: AutoEncoder(AutoEncoderParams).
        small_decoder_params: AutoEncoderSmallDecoderParams, for a decoder narrower than the encoder.
        encode_references: encode_image_refs(autoencoder, images), which the pipeline calls for reference images.
        pipeline: Flux2Pipeline, the loop that previews run.
        scheduler: CustomFlowMatchEulerDiscreteScheduler; the pipeline takes one but does not call it.
        scheduler_config: the scheduler's keyword arguments.
    """

    version: str
    transformer: Any
    transformer_params: Any
    autoencoder: Any
    autoencoder_params: Any
    small_decoder_params: Any
    get_schedule: Any
    encode_references: Any
    pipeline: Any
    scheduler: Any
    scheduler_config: Mapping[str, Any]


def load_toolkit(root: Path) -> Toolkit:
    """Import AI Toolkit's classes from the checkout at `root`.

    Raises:
        CheckpointError: the folder is no checkout, lacks a file or a class, or needs a package that is not installed.
    """
    for file in (*_CLASSES, _MODEL, _VERSION):
        if not (root / file).is_file():
            raise CheckpointError(
                f"{root} is not a checkout of AI Toolkit with FLUX.2: {file} is missing; check AI_TOOLKIT_PATH"
            )
    # pipeline.py imports these. Resolve them first: transformers looks for torchvision while it resolves them and
    # remembers the answer, which must not be the empty package of `_stand_in`.
    _ = transformers.AutoProcessor, transformers.Mistral3ForConditionalGeneration
    found = {name: used for file, names in _CLASSES.items() for name, used in _used(root.resolve(), file, names)}
    return Toolkit(
        version=_constant(root / _VERSION, "VERSION"),
        transformer=found["Flux2"],
        transformer_params=found["Flux2Params"],
        autoencoder=found["AutoEncoder"],
        autoencoder_params=found["AutoEncoderParams"],
        small_decoder_params=found["AutoEncoderSmallDecoderParams"],
        get_schedule=found["get_schedule"],
        encode_references=found["encode_image_refs"],
        pipeline=found["Flux2Pipeline"],
        scheduler=found["CustomFlowMatchEulerDiscreteScheduler"],
        scheduler_config=_constant(root / _MODEL, "scheduler_config"),
    )


def _used(root: Path, file: Path, names: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    module = _module(root, file)
    for name in names:
        if not hasattr(module, name):
            raise _unknown_version(root / file, name)
        yield name, getattr(module, name)


def _module(root: Path, file: Path) -> ModuleType:
    try:
        with _torchvision_for(file), _stand_in("toolkit", root / "toolkit"):
            return importlib.import_module(f"{_package(root / file.parent)}.{file.stem}")
    except ImportError as error:
        missing = f"install {error.name}" if error.name and not error.name.startswith(_PACKAGE) else str(error)
        raise CheckpointError(f"{root}: {file.name} of AI Toolkit cannot be imported: {missing}") from error
    except SyntaxError as error:
        raise CheckpointError(f"{root}: {error.filename}:{error.lineno} is not Python: {error.msg}") from error


_PACKAGE = "ai_toolkit_"


def _package(folder: Path) -> str:
    """Register an empty package for `folder`, so that the files can import each other; return its name."""
    name = f"{_PACKAGE}{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}"
    if name not in sys.modules:
        sys.modules[name] = _empty_package(name, folder)
    return name


def _empty_package(name: str, folder: Path | None) -> ModuleType:
    package = ModuleType(name)
    if folder is not None:
        package.__path__ = [str(folder)]
    return package


def _torchvision_for(file: Path) -> Any:
    """Replace torchvision by the part of it that `sampling.py` uses, if it is not installed."""
    installed = "torchvision" in sys.modules or importlib.util.find_spec("torchvision")
    if installed or file.name != "sampling.py":
        return nullcontext()
    # For reference images: `ToTensor` is all that the file calls, and the file keeps this package.
    return _stand_in("torchvision", None, transforms=SimpleNamespace(ToTensor=lambda: to_unit_tensor))


@contextmanager
def _stand_in(name: str, folder: Path | None, **members: Any) -> Iterator[None]:
    """Replace the package of this name, installed or not, by one with these members alone inside the `with` block."""
    aside = _take_out(name)
    sys.modules[name] = _empty_package(name, folder)
    vars(sys.modules[name]).update(members)
    try:
        yield
    finally:
        _take_out(name)
        sys.modules.update(aside)


def _take_out(name: str) -> dict[str, ModuleType]:
    """Remove a package and its submodules from the imported modules; return them."""
    inside = [module for module in sys.modules if module == name or module.startswith(f"{name}.")]
    return {module: sys.modules.pop(module) for module in inside}


def _constant(file: Path, name: str) -> Any:
    """Return the literal that a file assigns to `name` at its top level, without running the file."""
    try:
        body = ast.parse(file.read_text(), file.name).body
        for line in body:
            if isinstance(line, ast.Assign) and any(isinstance(to, ast.Name) and to.id == name for to in line.targets):
                return ast.literal_eval(line.value)
    except (SyntaxError, ValueError) as error:
        raise CheckpointError(f"{file}: {name} cannot be read: {error}") from error
    raise _unknown_version(file, name)


def _unknown_version(file: Path, name: str) -> CheckpointError:
    return CheckpointError(
        f"{file} has no {name}, so this version of AI Toolkit is not supported; check out another one"
    )
