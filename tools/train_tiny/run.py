"""A training run: its device, clock, log and sheets of pictures, and steps recorded as CUDA graphs."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

Step = Callable[[], Tensor]


class Run:
    """One training run.

    Args:
        scale: factor for the size of batches; small for a CPU.
        compiled: compile the transformer's blocks.
        pictures: limit of a pool's size; a limited pool is never renewed.
    """

    def __init__(self, out: Path, device: str, scale: float, *, compiled: bool, pictures: int | None = None) -> None:
        self.out, self.device, self.scale, self.compiled = out, torch.device(device), scale, compiled
        self.pictures = pictures
        self.started = time.monotonic()
        out.mkdir(parents=True, exist_ok=True)

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    def scaled(self, full: int, *, least: int = 2) -> int:
        """Scale a number of pictures."""
        return max(least, int(full * self.scale))

    def pool_size(self, full: int) -> int:
        """Return the size of a pool."""
        return min(full, self.pictures or full)

    def note(self, stage: str, step: int, **values: float) -> None:
        """Append a line to log.jsonl."""
        row = {"s": round(time.monotonic() - self.started, 1), "stage": stage, "step": step, **values}
        with (self.out / "log.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    def autocast(self) -> Any:
        """Multiply in bfloat16 on a GPU, without a cache of casts, which recorded graphs would reuse in later steps."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, cache_enabled=False, enabled=self.is_cuda)

    def record(self, step: Step) -> Step:
        """Return `step` as one CUDA graph, which takes a quarter of the time; on a CPU, return `step` itself.

        The step must not wait for the device and must not change shapes. It runs three times before it is recorded: set
        the learning rate to zero first.
        """
        if not self.is_cuda:
            return step
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):  # own memory: a shared pool ends with the first stage's graphs
            loss = step()

        def replay() -> Tensor:
            graph.replay()
            return loss

        return replay


def steps_for(seconds: float) -> Iterator[tuple[int, float]]:
    """Count steps from 1 until the seconds are over; yield each step with the share of the time that has passed."""
    begun, step = time.monotonic(), 0
    while (part := (time.monotonic() - begun) / seconds) < 1:
        step += 1
        yield step, part


def save_grid(images: Tensor, file: Path, *, columns: int = 8) -> None:
    """Save pictures (batch, 3, height, width), from -1 to 1, on one sheet."""
    pixels = ((images.detach().float().cpu() + 1) * 127.5).clamp(0, 255).byte()
    height, width = images.shape[-2:]
    sheet = Image.new("RGB", (min(columns, len(images)) * width, math.ceil(len(images) / columns) * height))
    for index, image in enumerate(pixels):
        place = (index % columns * width, index // columns * height)
        sheet.paste(Image.fromarray(image.permute(1, 2, 0).numpy()), place)
    sheet.save(file)
