"""Fill a module with the tensors of safetensors files, completely or not at all.

Modules are built without memory (device `meta`) and get their tensors one by one, so no second copy of a 64 GB
checkpoint exists and bfloat16 files never pass through float32. `worker.checkpoint.tensor_names` says which tensor
belongs to which parameter.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from shared.errors import CheckpointError
from worker.checkpoint.reader import Completion, Reader, Region, already_complete
from worker.checkpoint.tensor_files import OPTIONAL, Tensors
from worker.checkpoint.tensor_names import Origin


def fill(
    module: nn.Module,
    files: Tensors,
    origins: Mapping[str, Origin],
    *,
    device: torch.device,
    dtype: torch.dtype,
    alone: bool = True,
    reader: Reader | None = None,
) -> None:
    """Give a module that was built on the meta device its tensors, and prepare it for inference.

    Args:
        origins: for each entry of the module's state, the tensor of `files` that holds it.
        alone: whether an unused tensor in the files is an error.
        reader: reads the files and keeps them open; None opens them for this call only.

    Raises:
        CheckpointError: a tensor is missing, unexpected or of another shape; `module` must not be used then.
    """
    _check_names(files, origins, alone=alone)
    # Allocate everything first: copies to a GPU wait while its memory is being allocated.
    state = {
        name: _allocate(name, empty, origins[name], files, device, dtype) for name, empty in module.state_dict().items()
    }
    with ExitStack() as stack:
        reader = reader or stack.enter_context(Reader(device))
        completions = [
            _begin_read(origins[name], files, target, reader)
            for name, target in state.items()
            if origins[name].tensor in files.shapes
        ]
        for complete in completions:
            complete()
        if device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()
    # Assigning keeps the tensors that were just filled; copying would need memory for a second set.
    module.load_state_dict(state, assign=True)
    module.requires_grad_(False).eval()


def _allocate(
    name: str, empty: Tensor, origin: Origin, files: Tensors, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Return memory for a parameter that is `empty` on the meta device; zeros if no file has it."""
    if origin.tensor not in files.shapes:
        return torch.zeros(empty.shape, dtype=empty.dtype, device=device)
    shape = _shape(origin, files)
    if shape == (*empty.shape, 1, 1):  # a 1x1 convolution that diffusers runs as a linear layer
        shape = shape[:-2]
    if shape != empty.shape:
        raise CheckpointError(
            f"{files.name}: tensor {origin.tensor!r} gives {list(shape)} to {name}, not {list(empty.shape)}"
        )
    return torch.empty(shape, dtype=dtype if empty.is_floating_point() else empty.dtype, device=device)


def _shape(origin: Origin, files: Tensors) -> tuple[int, ...]:
    """Return the shape of the rows that an origin selects from its tensor."""
    return tuple(origin.select_rows(torch.empty(files.shapes[origin.tensor], device="meta")).shape)


def regions(module: nn.Module, files: Tensors, origins: Mapping[str, Origin]) -> dict[str, tuple[Region, ...]]:
    """Return where the bytes of a filled module's parameters are; parameters stored in another dtype are left out."""
    found = {name: _row_regions(origins[name], files, weight.dtype) for name, weight in module.named_parameters()}
    return {name: parts for name, parts in found.items() if parts}


def _row_regions(origin: Origin, files: Tensors, dtype: torch.dtype) -> tuple[Region, ...]:
    """Return where an origin's rows are, in order; nothing if they must be converted."""
    region = files.region(origin.tensor, dtype)
    if region is None or files.shapes[origin.tensor][0] % origin.of:
        return ()
    size = region.size // origin.of
    return tuple(Region(region.file, region.start + part * size, size) for part in origin.parts)


def _begin_read(origin: Origin, files: Tensors, target: Tensor, reader: Reader) -> Completion:
    """Begin to fill `target` with an origin's rows; rows that must be converted are read before this returns."""
    parts = _row_regions(origin, files, target.dtype)
    if not parts:
        target.copy_(origin.select_rows(files.read(origin.tensor)).view(target.shape))
        return already_complete
    return reader.read_rows(parts, target)


def _check_names(files: Tensors, origins: Mapping[str, Origin], *, alone: bool) -> None:
    wanted = {origin.tensor for origin in origins.values()}
    missing = sorted(wanted - files.shapes.keys() - OPTIONAL)
    unexpected = sorted(files.shapes.keys() - wanted) if alone else []
    for problem, names in (("missing", missing), ("unexpected", unexpected)):
        if names:
            more = f", and {len(names) - 1} more" if len(names) > 1 else ""
            raise CheckpointError(f"{files.name}: tensor {names[0]!r} is {problem}{more}")
