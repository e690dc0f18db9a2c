"""What all stages share: device, clock, log, steps recorded as CUDA graphs, averaged weights, sheets of pictures."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

Step = Callable[[], Tensor]

_WEIGHT_DECAY = 0.01
_MOMENTUM = 0.95


class Run:
    """One training run.

    Args:
        scale: of batches; small for a CPU.
        compiled: compile the transformer's blocks.
        pictures: most that are kept of one size, never renewed.
    """

    def __init__(self, out: Path, device: str, scale: float, *, compiled: bool, pictures: int | None = None) -> None:
        self.out, self.device, self.scale, self.compiled = out, torch.device(device), scale, compiled
        self.pictures = pictures
        self.started = time.monotonic()
        out.mkdir(parents=True, exist_ok=True)

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    def count(self, full: int, *, least: int = 2) -> int:
        """Scale a number of pictures."""
        return max(least, int(full * self.scale))

    def places(self, full: int) -> int:
        """Return how many pictures of a size are kept."""
        return min(full, self.pictures or full)

    def note(self, stage: str, step: int, **values: float) -> None:
        """Append a line to log.jsonl."""
        row = {"s": round(time.monotonic() - self.started, 1), "stage": stage, "step": step, **values}
        with (self.out / "log.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    def autocast(self) -> Any:
        """Multiply in bfloat16 on a GPU; no cache of casts, which a recorded graph would reuse in another step."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, cache_enabled=False, enabled=self.is_cuda)

    def record(self, step: Step) -> Step:
        """Return `step` as one CUDA graph, which takes a quarter of the time; on a CPU the function itself.

        It must neither wait for the device nor change shapes. It is run three times before, with whatever learning
        rate is set: set it to zero.
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
        with torch.cuda.graph(graph):  # memory of its own: a pool that is shared ends with the first stage's graphs
            loss = step()

        def replay() -> Tensor:
            graph.replay()
            return loss

        return replay


class Optimizer:
    """AdamW with a warm-up and a linear end, and an average of the weights; all of it can be recorded.

    Args:
        rate: highest learning rate.
        decay: of the average, by step; it starts at step `start`.
        matrices: those of `parameters` that follow Muon instead, at the same rate.
    """

    def __init__(
        self, run: Run, parameters: list[nn.Parameter], *, rate: float, decay: float, warmup: int,
        matrices: Iterable[nn.Parameter] = (),
    ) -> None:  # fmt: skip
        self.parameters = parameters
        self.rate, self._decay, self._warmup = rate, decay, warmup
        self._now = torch.zeros((), device=run.device)
        self._muon = Muon(list(matrices), self._now)
        apart = {id(matrix) for matrix in self._muon.matrices}
        rest = [parameter for parameter in parameters if id(parameter) not in apart]
        groups = [
            {"params": [parameter for parameter in rest if parameter.ndim > 1], "weight_decay": _WEIGHT_DECAY},
            {"params": [parameter for parameter in rest if parameter.ndim <= 1], "weight_decay": 0.0},
        ]
        fused = {"fused": True, "capturable": True} if run.is_cuda else {}
        self._adam = torch.optim.AdamW(
            [group for group in groups if group["params"]], lr=self._now, betas=(0.9, 0.98), **fused
        )
        self._average = [parameter.detach().clone() for parameter in parameters]

    def schedule(self, step: int, part: float) -> None:
        """Set the learning rate for a step; `part` of the stage's time is over."""
        self._now.fill_(self.rate * min(1.0, step / self._warmup, (1 - part) * 2.5 + 0.003))
        if step == self._warmup:
            self.restart_average()

    def rest(self) -> None:
        """Set the learning rate to zero, for steps that only warm up."""
        self._now.zero_()

    def restart_average(self) -> None:
        torch._foreach_copy_(self._average, [parameter.detach() for parameter in self.parameters])

    def step(self, loss: Tensor) -> Tensor:
        """Follow the gradient of `loss`."""
        self._adam.zero_grad(set_to_none=False)
        self._muon.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0, foreach=True)
        self._adam.step()
        self._muon.step()
        with torch.no_grad():
            torch._foreach_lerp_(self._average, [parameter.detach() for parameter in self.parameters], 1 - self._decay)
        return loss.detach()

    @torch.no_grad()
    def use_average(self) -> None:
        """Keep the average as the weights."""
        for parameter, value in zip(self.parameters, self._average, strict=True):
            parameter.copy_(value)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Put the average in the weights' place for a while."""
        kept = [parameter.detach().clone() for parameter in self.parameters]
        self.use_average()
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, value in zip(self.parameters, kept, strict=True):
                    parameter.copy_(value)


class Muon:
    """Momentum whose matrices are made orthogonal before each step (Jordan et al. 2024), sized as AdamW's steps are.

    Matrices of one shape go through it together: a few kernels, and nothing that waits for the device.

    Args:
        matrices: two-dimensional parameters.
        rate: a tensor that is read at each step; with the factor 0.2 * sqrt(larger side) of Liu et al. 2025 the rates
            of AdamW serve.
    """

    def __init__(self, matrices: list[nn.Parameter], rate: Tensor) -> None:
        self.matrices, self._rate = matrices, rate
        shapes = dict.fromkeys(matrix.shape for matrix in matrices)
        self._groups = [[matrix for matrix in matrices if matrix.shape == shape] for shape in shapes]
        self._momenta = [torch.zeros_like(torch.stack(group)) for group in self._groups]

    def zero_grad(self) -> None:
        grads = [matrix.grad for matrix in self.matrices if matrix.grad is not None]
        if grads:
            torch._foreach_zero_(grads)

    @torch.no_grad()
    def step(self) -> None:
        """Follow the gradients."""
        for group, momentum in zip(self._groups, self._momenta, strict=True):
            gradient = torch.stack([matrix.grad for matrix in group if matrix.grad is not None])
            momentum.lerp_(gradient, 1 - _MOMENTUM)
            update = _orthogonal(gradient.lerp(momentum, _MOMENTUM)).float() * (0.2 * math.sqrt(max(group[0].shape)))
            torch._foreach_mul_(group, 1 - self._rate * _WEIGHT_DECAY)
            torch._foreach_sub_(group, list((update * self._rate).unbind()))


def _orthogonal(matrices: Tensor) -> Tensor:
    """Return about the nearest matrices of singular values 1, by five Newton-Schulz steps; (count, rows, columns)."""
    wide = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    found = (wide / (wide.norm(dim=(1, 2), keepdim=True) + 1e-7)).bfloat16()
    for _ in range(5):
        gram = found @ found.mT
        found = 3.4445 * found + (-4.7750 * gram + 2.0315 * gram @ gram) @ found
    return found if wide is matrices else found.mT


def timed(seconds: float) -> Iterator[tuple[int, float]]:
    """Count steps from 1, with the share of the seconds that is over, until they are."""
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
