"""Write the files of the embedded demonstration model: a tiny FLUX.2 with trained weights, shipped in this package.

It has the real model's architecture, file layout, names and dtypes, and draws simple figures and scenes on two CPU
cores, without a download. `tools/train_tiny` trains it and documents how.
"""

from __future__ import annotations

import filecmp
import shutil
import tempfile
from pathlib import Path

from shared.catalog import FLUX2_DEV
from shared.errors import OutputRefused

_SHIPPED = Path(__file__).with_name("demo_checkpoint")

#: The model's adapters, in AI Toolkit's format: a subject with the trigger `sks`, and two styles, the second a LoKr.
SUBJECT = "sks_robot"
STYLES = ("blueprint", "neon")


def write_tiny_checkpoint(folder: Path) -> None:
    """Write the transformer and autoencoder as BFL single files, and `text_encoder/` as a Hugging Face folder.

    Raises:
        OutputRefused: the folder cannot be written, or holds other files under these names.
    """
    # Copied into a model folder, so that all later steps are the same as with real weights.
    for name in (FLUX2_DEV.transformer_file, FLUX2_DEV.autoencoder_file):
        _copy(_SHIPPED / name, folder / name)
    for file in sorted((_SHIPPED / "text_encoder").iterdir()):
        _copy(file, folder / "text_encoder" / file.name)


def write_tiny_adapter(target: Path, name: str = SUBJECT) -> None:
    """Write the subject's adapter, or one of `STYLES`.

    Raises:
        OutputRefused: the file cannot be written, or is another one.
    """
    _copy(_SHIPPED / "adapters" / f"{name}.safetensors", target)


def _copy(source: Path, target: Path) -> None:
    """Copy a file unless it is there already; never replace another one, which may be 64 GB of real weights."""
    try:
        if target.exists():
            if not filecmp.cmp(source, target, shallow=False):
                raise OutputRefused(f"{target} exists and is another file; choose another folder")
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        # Complete before it has its name: a copy that was interrupted would count as another file.
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}-", delete=False) as fresh:
            partial = Path(fresh.name)
        try:
            shutil.copyfile(source, partial)
            partial.chmod(0o644)
            partial.rename(target)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise OutputRefused(f"cannot write {target}: {error.strerror}; choose another folder") from error
