"""Turn files into ComfyUI's images and back: float32 tensors (images, height, width, channels) of 0 to 1."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image


def read_pictures(files: Sequence[bytes]) -> torch.Tensor:
    """Return (images, height, width, 3) of files of one size."""
    pictures = [np.asarray(Image.open(io.BytesIO(file)).convert("RGB"), dtype=np.float32) / 255 for file in files]
    return torch.from_numpy(np.stack(pictures))


def write_png(image: torch.Tensor) -> bytes:
    """Return the PNG file of (height, width, channels), of which the first three are red, green and blue."""
    values = (image[..., :3].clamp(0, 1) * 255).round().to(device="cpu", dtype=torch.uint8)
    file = io.BytesIO()
    Image.fromarray(values.numpy()).save(file, format="PNG")
    return file.getvalue()
