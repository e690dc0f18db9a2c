"""What people are told of the embedded demonstration model: what it is, and what to ask it for.

The model itself is `worker.model.demo_model`; the API's side shows these words without importing it.
"""

from __future__ import annotations

LABEL = "embedded demonstration model"

#: Said wherever its pictures are shown.
ABOUT = (
    f"The {LABEL} is FLUX.2's architecture at a six-thousandth of its size, trained on drawn figures and "
    "simple scenes: it shows that prompts and adapters count, not what FLUX.2 can do."
)

#: Side of the pictures that it draws best, in pixels.
DRAWN_PX = 128

#: Prompts that it can draw, for a first try.
PROMPTS = (
    "a yellow circle to the left of a purple square",
    "four white diamonds on a blue background",
    "a large brown cross on a pink background",
    "a tree in the snow at night",
    "a house with a red roof on green hills under a yellow sun",
)
