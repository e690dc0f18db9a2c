"""The optimizer of all stages: AdamW, Muon for the matrices of the blocks, and an average of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from tools.train_tiny.run import Run

_WEIGHT_DECAY = 0.01
_MOMENTUM = 0.95


class Optimizer:
    """AdamW with a warm-up and a linear decay, and a moving average of the weights; a CUDA graph can record its steps.

    Args:
        rate: highest learning rate.
        decay: decay of the average with each step; the average starts when the warm-up ends.
        warmup: steps of the warm-up.
        matrices: those of `parameters` that Muon trains instead, at the same rate.
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
        used = [group for group in groups if group["params"]]
        self._adam = torch.optim.AdamW(used, lr=self._now, betas=(0.9, 0.98), **fused) if used else None
        self._average = [parameter.detach().clone() for parameter in parameters]

    def schedule(self, step: int, part: float) -> None:
        """Set the learning rate for a step; `part` is the share of the stage's time that has passed."""
        self._now.fill_(self.rate * min(1.0, step / self._warmup, (1 - part) * 2.5 + 0.003))
        if step == self._warmup:
            self.restart_average()

    def stop_learning(self) -> None:
        """Set the learning rate to zero, for steps that only prepare a recording."""
        self._now.zero_()

    def restart_average(self) -> None:
        torch._foreach_copy_(self._average, [parameter.detach() for parameter in self.parameters])

    def step(self, loss: Tensor) -> Tensor:
        """Take a step along the gradient of `loss`, and update the average."""
        if self._adam is not None:
            self._adam.zero_grad(set_to_none=False)
        self._muon.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0, foreach=True)
        if self._adam is not None:
            self._adam.step()
        self._muon.step()
        with torch.no_grad():
            torch._foreach_lerp_(self._average, [parameter.detach() for parameter in self.parameters], 1 - self._decay)
        return loss.detach()

    @torch.no_grad()
    def use_average(self) -> None:
        """Replace the weights by their average."""
        for parameter, value in zip(self.parameters, self._average, strict=True):
            parameter.copy_(value)


class Muon:
    """Momentum that is made orthogonal before each step (Jordan et al. 2024), scaled to the size of AdamW's steps.

    Matrices of one shape are processed together: that takes few kernels and never waits for the device.

    Args:
        matrices: two-dimensional parameters.
        rate: tensor with the learning rate, read at each step. The factor 0.2 * sqrt(larger side) of Liu et al. 2025
            allows the same rates as AdamW.
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
        """Take a step along the gradients."""
        for group, momentum in zip(self._groups, self._momenta, strict=True):
            gradient = torch.stack([matrix.grad for matrix in group if matrix.grad is not None])
            momentum.lerp_(gradient, 1 - _MOMENTUM)
            update = _orthogonal(gradient.lerp(momentum, _MOMENTUM)).float() * (0.2 * math.sqrt(max(group[0].shape)))
            torch._foreach_mul_(group, 1 - self._rate * _WEIGHT_DECAY)
            torch._foreach_sub_(group, list((update * self._rate).unbind()))


def _orthogonal(matrices: Tensor) -> Tensor:
    """Approximate the nearest matrices with singular values 1 by five Newton-Schulz steps; (count, rows, columns)."""
    wide = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    found = (wide / (wide.norm(dim=(1, 2), keepdim=True) + 1e-7)).bfloat16()
    for _ in range(5):
        gram = found @ found.mT
        found = 3.4445 * found + (-4.7750 * gram + 2.0315 * gram @ gram) @ found
    return found if wide is matrices else found.mT
