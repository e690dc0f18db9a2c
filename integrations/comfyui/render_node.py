"""The node that submits a job to flux2-queue, waits for it, and returns its images."""

from __future__ import annotations

import logging
import os
import time
from typing import Any

import torch
from comfy.model_management import throw_exception_if_processing_interrupted
from comfy.utils import ProgressBar

from .adapter_node import ADAPTERS, CATEGORY, Adapter
from .pictures import read_pictures, write_png
from .queue_api import QueueApi, QueueError

_logger = logging.getLogger("flux2.comfyui")

_DEFAULT_URL = "http://127.0.0.1:8000"
_ENDED = frozenset({"succeeded", "failed", "canceled"})
# Of the progress bar; more than an image has steps.
_PARTS = 1000
_POLL_S = 0.5
# A person who presses Cancel should not wait longer.
_LOOK_S = 0.1
_SIDE = {"default": 1024, "min": 64, "max": 4096, "step": 16}
# The largest that the service draws itself.
_SEED = {"default": 42, "min": 0, "max": 2**32 - 1, "control_after_generate": True}


class RenderNode:
    """Renders a prompt in the queue; the images have the seeds `seed`, `seed + 1` and so on."""

    CATEGORY = CATEGORY
    FUNCTION = "render"
    RETURN_TYPES = ("IMAGE", "STRING")
    RETURN_NAMES = ("images", "request_id")
    DESCRIPTION = (
        "Renders with FLUX.2 on the workers of flux2-queue, at FLUX2_CLIENT_URL (default http://127.0.0.1:8000) with "
        "the key FLUX2_API_KEY."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "prompt": ("STRING", {"multiline": True, "dynamicPrompts": True}),
                "width": ("INT", _SIDE),
                "height": ("INT", _SIDE),
                "seed": ("INT", _SEED),
                "images": ("INT", {"default": 1, "min": 1, "max": 64}),
                "steps": ("INT", {"default": 25, "min": 1, "max": 150}),
                "guidance": ("FLOAT", {"default": 4.0, "min": 0.0, "max": 20.0, "step": 0.1}),
            },
            "optional": {
                "adapters": (ADAPTERS,),
                "trigger_word": ("STRING", {"default": "", "tooltip": "Replaces [trigger] in the prompt."}),
                "model": ("STRING", {"default": "flux2"}),
                "reference_1": ("IMAGE", {"tooltip": "Image to edit, or to take the subject from."}),
                "reference_2": ("IMAGE",),
                "reference_3": ("IMAGE",),
            },
        }

    def render(
        self,
        prompt: str,
        width: int,
        height: int,
        seed: int,
        images: int,
        steps: int,
        guidance: float,
        adapters: tuple[Adapter, ...] = (),
        trigger_word: str = "",
        model: str = "flux2",
        reference_1: torch.Tensor | None = None,
        reference_2: torch.Tensor | None = None,
        reference_3: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, str]:
        """Return the images (images, height, width, 3) and the id of the job.

        Raises:
            QueueError: an image was not rendered.
            InterruptProcessingException: ComfyUI's; the job is canceled.
        """
        # Not inputs: a workflow that somebody shares must neither hold a key nor name the host that gets it.
        url, key = os.environ.get("FLUX2_CLIENT_URL") or _DEFAULT_URL, os.environ.get("FLUX2_API_KEY")
        api = QueueApi(url, api_key=key, pause=_pause)
        references = [image for image in (reference_1, reference_2, reference_3) if image is not None]
        # Of a batch, the first.
        names = {f"ctrl_img_{n}": api.upload(write_png(image[0])) for n, image in enumerate(references, start=1)}
        fields = {"width": width, "height": height, "sample_steps": steps, "guidance_scale": guidance, **names}
        request = {
            "model": model,
            "prompts": [{"prompt": prompt, "seed": seed + index, **fields} for index in range(images)],
            "loras": list(adapters),
            **({"trigger_word": trigger_word} if trigger_word else {}),
        }
        request_id = api.submit(request)
        try:
            status = _wait(api, request_id)
        except BaseException:
            # Nobody would take the images.
            _cancel(api, request_id)
            raise
        _require_images(status)
        return read_pictures(api.images(request_id)), request_id


def _wait(api: QueueApi, request_id: str) -> dict[str, Any]:
    """Show the progress of a job until it has ended; return its last status."""
    bar = ProgressBar(_PARTS)
    while True:
        status = api.status(request_id)
        bar.update_absolute(round(_PARTS * status["progress"]), _PARTS)
        if status["status"] in _ENDED:
            return status
        _pause(_POLL_S)


def _cancel(api: QueueApi, request_id: str) -> None:
    try:
        api.cancel(request_id)
    except QueueError as error:
        # What ended the node is reported already. ComfyUI's log shows the message alone.
        _logger.warning("request %s goes on, because it could not be canceled: %s", request_id, error)


def _pause(seconds: float) -> None:
    """Wait, unless a person cancels; ComfyUI's exception then ends the node."""
    deadline_s = time.monotonic() + seconds
    while True:
        throw_exception_if_processing_interrupted()
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            return
        time.sleep(min(_LOOK_S, left_s))


def _require_images(status: dict[str, Any]) -> None:
    if status["status"] == "succeeded":
        return
    errors = [item["error"]["message"] for item in status["items"] if item.get("error")]
    reason = next(iter(errors), status.get("error") or "its images are missing")
    raise QueueError(f"request {status['request_id']} {status['status']}: {reason}")
