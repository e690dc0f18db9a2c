"""Words and paths by which commands present the embedded demonstration model.

`worker.model.demo_model` writes the model's files. The client and `flux2 up` import this module instead, because they
must not import torch.
"""

from __future__ import annotations

LABEL = "embedded demonstration model"

#: Explanation that commands print with the model's pictures.
ABOUT = (
    f"The {LABEL} is FLUX.2's architecture at a six-thousandth of its size, trained on drawn figures and "
    "simple scenes: it shows that prompts and adapters have an effect, not how well FLUX.2 draws."
)

#: Side in pixels of the pictures that the model draws best.
DRAWN_PX = 128

#: Prompts that the model can draw, for a first try.
PROMPTS = (
    "a yellow circle to the left of a purple square",
    "four white diamonds on a blue background",
    "a large brown cross on a pink background",
    "a tree in the snow at night",
    "a house with a red roof on green hills under a yellow sun",
)

#: The prompt of `PROMPTS` whose picture is edited, and instructions for the edit adapter.
EDITED = PROMPTS[2]
EDITS = ("make it blue", "make the background yellow")

# The path of the reference API's example request, so that people can send the example unchanged.
#: Path of the demonstration adapter under the adapter root.
DEMO_ADAPTER = "my_lora_job/my_lora.safetensors"

#: Folder of the demonstration styles under the adapter root.
DEMO_STYLES = "tiny"

_DEFAULT_MODEL = "flux2"


def demo_checkpoint(model: str) -> str:
    """Return the folder of a model's demonstration checkpoint, under a stack's data folder."""
    return "tiny" if model == _DEFAULT_MODEL else f"tiny_{model}"


def demo_adapter(model: str) -> str:
    """Return the path of a model's demonstration adapter under the adapter root."""
    return DEMO_ADAPTER if model == _DEFAULT_MODEL else f"my_lora_job/{model}.safetensors"


def demo_styles(model: str) -> str:
    """Return the folder of a model's demonstration styles under the adapter root."""
    return DEMO_STYLES if model == _DEFAULT_MODEL else f"tiny_{model}"


def demo_edit(model: str) -> str:
    """Return the path of a model's demonstration edit adapter under the adapter root."""
    return f"{demo_styles(model)}/edit.safetensors"
