"""Turn the prepared pixels of a reference image into the tensor that the autoencoder encodes."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def to_pixels(image: Image.Image) -> Tensor:
    """Return an RGB image as (1, 3, height, width), -1 to 1, in float32."""
    # Two operations, because each one rounds: AI Toolkit scales to 0..1 first.
    return 2 * to_unit_tensor(image)[None] - 1


def to_unit_tensor(image: Image.Image) -> Tensor:
    """Return an RGB image as (3, height, width), 0 to 1, in float32: what torchvision's `ToTensor` returns."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
