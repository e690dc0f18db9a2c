"""Files and texts that the API accepts: noise alone would never come past the check of an image or an adapter."""

from __future__ import annotations

import io
import json
import struct
from typing import Final

from PIL import Image

#: Where the example of the API's document has its adapter.
ADAPTER_PATH: Final = "my_lora_job/my_lora.safetensors"

_LAYER: Final = "diffusion_model.double_blocks.0.img_attn.proj"
_RANK, _WIDTH = 2, 8
_FLOAT_BYTES: Final = 4


def make_adapter(seed: int) -> bytes:
    """Return a LoRA of one layer, in float32; other seeds give other bytes."""
    count = _RANK * _WIDTH
    size = count * _FLOAT_BYTES
    header = {
        f"{_LAYER}.lora_A.weight": {"dtype": "F32", "shape": [_RANK, _WIDTH], "data_offsets": [0, size]},
        f"{_LAYER}.lora_B.weight": {"dtype": "F32", "shape": [_WIDTH, _RANK], "data_offsets": [size, 2 * size]},
    }
    text = json.dumps(header).encode()
    values = [float(seed + index) for index in range(2 * count)]
    return struct.pack("<Q", len(text)) + text + struct.pack(f"<{len(values)}f", *values)


def make_image(seed: int, *, image_format: str = "PNG") -> bytes:
    """Return the file of a small image; other seeds give other bytes."""
    file = io.BytesIO()
    Image.new("RGB", (64 + 16 * (seed % 4), 64), (seed % 256, 64, 128)).save(file, image_format)
    return file.getvalue()
