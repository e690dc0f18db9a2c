"""Choose the GPUs of this host that get a slot each."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

from shared.errors import CheckpointError

# In a process of its own: a supervisor with torch in it would hold 400 MB and never use them.
_COUNT = "import torch; print(torch.cuda.device_count())"
_COUNT_S = 120.0


def count_gpus() -> int:
    """Return the number of CUDA devices that processes of this environment see, as `CUDA_VISIBLE_DEVICES` says.

    Raises:
        CheckpointError: torch cannot be asked.
    """
    try:
        asked = subprocess.run([sys.executable, "-c", _COUNT], capture_output=True, text=True, timeout=_COUNT_S)
        return int(asked.stdout)
    except (ValueError, subprocess.TimeoutExpired) as error:
        raise CheckpointError(
            "the GPUs cannot be counted: torch does not start; run `python -c 'import torch'` to see why"
        ) from error


def group_gpus(gpus: Sequence[int], *, per_slot: int) -> list[Sequence[int]]:
    """Divide GPUs into slots, in their order.

    Raises:
        CheckpointError: some would be left over.
    """
    if len(gpus) % per_slot:
        raise CheckpointError(
            f"--gpus-per-slot {per_slot}: {len(gpus)} GPUs cannot be divided; choose a multiple of {per_slot} by --gpus"
        )
    return [gpus[start : start + per_slot] for start in range(0, len(gpus), per_slot)]


def choose_gpus(wanted: str, *, count: int) -> Sequence[int]:
    """Return the indices of the GPUs that `--gpus` names: `all`, a number N for the first N, or indices as in `0,2`.

    Args:
        count: how many this host has.

    Raises:
        CheckpointError: the text has another form, or names GPUs that are not there.
    """
    if count == 0:
        raise CheckpointError(
            "no CUDA device is visible: check nvidia-smi and CUDA_VISIBLE_DEVICES, or use --device cpu or --simulate"
        )
    if wanted == "all":
        return range(count)
    fields = [field.strip() for field in wanted.split(",")]
    # `2,` names one GPU.
    names = fields[:-1] if len(fields) > 1 and not fields[-1] else fields
    if not all(name.isdecimal() and name.isascii() and len(name) < 5 for name in names):
        raise CheckpointError(f"--gpus {wanted!r}: write all, a number of GPUs, or indices as in 0,2")
    numbers = [int(name) for name in names]
    if len(fields) == 1:
        if not 1 <= numbers[0] <= count:
            raise CheckpointError(
                f"--gpus {wanted}: this host has {count}; write 1 to {count}, or --device cuda:{numbers[0]} for one GPU"
            )
        return range(numbers[0])
    if absent := [number for number in numbers if number >= count]:
        raise CheckpointError(f"--gpus {wanted}: there is no GPU {absent[0]}; this host has 0 to {count - 1}")
    if len(set(numbers)) < len(numbers):
        raise CheckpointError(f"--gpus {wanted} names a GPU twice; a GPU has one slot")
    return numbers
