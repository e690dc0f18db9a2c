"""Write the files of the embedded demonstration model: a tiny FLUX.2 with trained weights, shipped in this package.

It has the real model's architecture, file layout, names and dtypes, and draws simple figures and scenes on two CPU
cores, without a download. `tools/train_tiny` trains it and documents how.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from shared.catalog import FLUX2_DEV

_SHIPPED = Path(__file__).with_name("demo_checkpoint")

#: The model's adapters, in AI Toolkit's format: a subject with the trigger `sks`, and two styles, the second a LoKr.
SUBJECT = "sks_robot"
STYLES = ("blueprint", "neon")


def write_tiny_checkpoint(folder: Path) -> None:
    """Write the transformer and autoencoder as BFL single files, and `text_encoder/` as a Hugging Face folder."""
    folder.mkdir(parents=True, exist_ok=True)
    # Copied into a model folder, so that all later steps are the same as with real weights.
    for name in (FLUX2_DEV.transformer_file, FLUX2_DEV.autoencoder_file):
        shutil.copyfile(_SHIPPED / name, folder / name)
    shutil.copytree(_SHIPPED / "text_encoder", folder / "text_encoder", dirs_exist_ok=True)


def write_tiny_adapter(target: Path, name: str = SUBJECT) -> None:
    """Write the subject's adapter, or one of `STYLES`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(_SHIPPED / "adapters" / f"{name}.safetensors", target)
