"""Compare an engine's latents with those of the engines that were measured before it."""

from __future__ import annotations

from torch import Tensor

from benchmarks.gpu.report import Row
from worker.kernels.distance import rel_l2

# These engines must give the same latents as those before them.
_EQUAL = ("ai-toolkit", "exact", "compiled")


class LatentsComparison:
    """Keeps the latents of each engine, also of models in other precisions that are loaded one after another."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, int], dict[str, Tensor]] = {}

    def compare(self, what: str, name: str, size: int, latents: Tensor, *, steps: int) -> Row:
        """Keep an engine's latents of one measurement.

        Returns:
            `finite`, and if other engines were measured before: `differing`, the elements in which the latents differ
            from each of theirs, or the `relative_error` of `fast`.
        """
        before = self._kept.setdefault((what, size), {})
        # On the host, so that another process can go on comparing.
        latents = latents.cpu()
        notes: Row = {"finite": bool(latents.isfinite().all())}
        if name == "fast" and before:
            notes |= {"relative_error": rel_l2(latents, next(iter(before.values()))), "after_steps": steps}
        if name in _EQUAL:
            if before:
                notes["differing"] = {other: int((latents != kept).sum()) for other, kept in before.items()}
                notes |= {"of": latents.numel(), "after_steps": steps}
            before[str(name)] = latents
        return notes
