"""Write the files of the embedded demonstration model: a tiny FLUX.2 with trained weights, shipped in this package.

It has the real model's architecture, file layout, names and dtypes, and draws simple figures and scenes on two CPU
cores, without a download. `tools/train_tiny` trains it and documents how. Klein is derived from [dev].
"""

from __future__ import annotations

import os
from pathlib import Path

from shared.catalog import FLUX2_DEV, Model
from shared.errors import OutputRefused
from worker.checkpoint.tensor_edit import edit_tensors

_SHIPPED = Path(__file__).with_name("demo_checkpoint")

#: The model's adapters, in AI Toolkit's format: a subject with the trigger `sks`, and two styles, the second a LoKr.
SUBJECT = "sks_robot"
STYLES = ("blueprint", "neon")
#: A LoRA that edits a reference image: it recolours the figure or its background.
EDIT = "edit"


def write_tiny_checkpoint(folder: Path, model: Model = FLUX2_DEV) -> None:
    """Write the transformer and autoencoder as BFL single files, and `text_encoder/` as a Hugging Face folder.

    Raises:
        OutputRefused: the folder cannot be written, or holds other files under these names.
    """
    # Copied into a model folder, so that all later steps are the same as with real weights.
    distilled = (_SHIPPED / FLUX2_DEV.transformer_file).read_bytes()
    _write(_undistilled(distilled) if model.uses_negative_prompt else distilled, folder / model.transformer_file)
    _write((_SHIPPED / FLUX2_DEV.autoencoder_file).read_bytes(), folder / model.autoencoder_file)
    text_encoder = "klein_text_encoder" if model.uses_negative_prompt else "text_encoder"
    for file in sorted((_SHIPPED / text_encoder).iterdir()):
        _write(file.read_bytes(), folder / "text_encoder" / file.name)


def write_tiny_adapter(target: Path, name: str = SUBJECT, model: Model = FLUX2_DEV) -> None:
    """Write the subject's adapter, one of `STYLES`, or `EDIT`.

    Raises:
        OutputRefused: the file cannot be written, or is another one.
    """
    content = (_SHIPPED / "adapters" / f"{name}.safetensors").read_bytes()
    if model is not FLUX2_DEV:
        # Klein has the same blocks, so only the name of the base differs.
        content = edit_tensors(content, metadata={"ss_base_model_version": model.id})
    _write(content, target)


def _undistilled(content: bytes) -> bytes:
    """Return klein's transformer, which has no guidance embedder, from that of [dev].

    [dev] at guidance 1 is the model before its distillation. That guidance is part of klein's time embedding.
    """
    return edit_tensors(
        content,
        keep=lambda name: not name.startswith("guidance_in."),
        replacements=(_SHIPPED / "klein_time_in.safetensors").read_bytes(),
    )


def _write(content: bytes, target: Path) -> None:
    """Write a file unless it is there already; never replace another one, which may be 64 GB of real weights."""
    try:
        if target.exists():
            if target.stat().st_size != len(content) or target.read_bytes() != content:
                raise OutputRefused(f"{target} exists and is another file; choose another folder")
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        # Complete before it has its name: a file that was cut off would count as another one.
        partial = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            partial.write_bytes(content)
            partial.rename(target)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise OutputRefused(f"cannot write {target}: {error.strerror}; choose another folder") from error
