"""A slot of two processes that renders with the model of the goldens, and the pictures that it must give."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path

import torch
from PIL import Image

from shared.catalog import FLUX2_DEV
from shared.job import ItemSpec, SpecReport
from shared.settings import ModelSettings
from worker.device import pick_devices
from worker.model.load import load_components
from worker.rendering.followers import Followers
from worker.rendering.renderer import Renderer

_CPU = torch.device("cpu")
_THREADS = 1
# The attention heads of the demonstration model, three, cannot be shared by two devices.
_GOLDENS = Path(__file__).parents[1] / "tests/goldens"


def write_model(folder: Path) -> dict[str, str]:
    """Write the model; return the environment of a process that renders with it."""
    shutil.copytree(_GOLDENS / "text/mistral_tiny", folder / "text_encoder")
    shutil.copytree(_GOLDENS / "text/mistral_processor_pad_left", folder / "text_encoder", dirs_exist_ok=True)
    shutil.copy(_GOLDENS / "weights/flux2_dev_tiny.safetensors", folder / FLUX2_DEV.transformer_file)
    shutil.copy(_GOLDENS / "weights/ae_tiny.safetensors", folder / FLUX2_DEV.autoencoder_file)
    return {
        "FLUX2_MODEL_PATH": str(folder),
        "FLUX2_MODEL_TEXT_ENCODER": str(folder / "text_encoder"),
        "FLUX2_MODEL_PRECISION": "fp32",
        # The processes of the slot share two cores.
        "OMP_NUM_THREADS": str(_THREADS),
    }


def open_renderer(settings: ModelSettings, devices: str, opened: ExitStack) -> Renderer:
    """Return a renderer on several devices, whose followers end with `opened`."""
    first, *others = pick_devices(devices)
    followers = Followers(settings, others, hf_token=None, adapter_cache_bytes=0)
    opened.callback(followers.close)
    components = load_components(settings, device=first, hf_token=None)
    renderer = Renderer(components, prompt_cache=4, followers=followers)
    renderer.warm_up()
    return renderer


class OneDevice:
    """Renders on one device what the slot must render."""

    def __init__(self, folder: Path) -> None:
        # As in the processes of the slot: the number of threads decides how sums are rounded.
        torch.set_num_threads(_THREADS)
        settings = ModelSettings(path=str(folder), text_encoder=str(folder / "text_encoder"), precision="fp32")
        self._renderer = Renderer(load_components(settings, device=_CPU, hf_token=None), prompt_cache=4)

    def picture(self, spec: SpecReport) -> Image.Image:
        """Return the only correct image of an item."""
        item = ItemSpec(
            model=FLUX2_DEV.id,
            width=spec.requested_width,
            height=spec.requested_height,
            adapters=(),
            output_format="png",
            **{**spec.model_dump(exclude={"sigmas"}), "neg": spec.neg or ""},
        )
        return self._renderer.render(item, [], on_progress=lambda _: None).image


def follower_of(leader: int) -> int:
    """Return the process id of the follower that a process has started.

    Raises:
        LookupError: it has none.
    """
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            is_follower = b"worker.rendering.follower" in (process / "cmdline").read_bytes()
        except OSError:
            # It has ended.
            continue
        if parent == leader and is_follower:
            return int(process.name)
    raise LookupError(f"process {leader} has no follower")
