"""Fill a module with the tensors of safetensors files; a missing or unexpected tensor is an error.

Modules are built without memory (device `meta`). `worker.checkpoint.tensor_names` says which tensor belongs to which
parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor, nn

from shared.errors import CheckpointError
from worker.checkpoint.reader import Completion, Reader, Region, already_complete
from worker.checkpoint.staging import read_staged
from worker.checkpoint.tensor_files import OPTIONAL, Tensors
from worker.checkpoint.tensor_names import Origin

#: Computes a parameter from the tensor that a file holds for it, which is overwritten afterwards.
Converter = Callable[[Tensor], None]


def fill(
    module: nn.Module,
    files: Tensors,
    origins: Mapping[str, Origin],
    *,
    device: torch.device,
    dtype: torch.dtype,
    reject_unused: bool = True,
    converters: Mapping[str, Converter] = MappingProxyType({}),
    reader: Reader | None = None,
) -> None:
    """Fill a module that was built on the meta device, and prepare it for inference.

    Args:
        origins: for each entry of the module's state, the tensor of `files` that holds it.
        reject_unused: raise if the files hold a tensor that no parameter needs.
        converters: for entries that are on `device` already and hold other values than the files. Each is called once,
            with the file's values in `dtype` on `device`, while the next ones are read. Memory for these values is
            bounded; see `read_staged`.
        reader: reads the files and keeps them open; None opens them for this call only.

    Raises:
        CheckpointError: a tensor is missing, unexpected or of another shape; do not use `module` after that.
    """
    # All names first: reading 64 GB must not end in a missing tensor.
    _check_names(files, origins, reject_unused=reject_unused)
    entries = module.state_dict()
    for name, entry in entries.items():
        _check_shape(name, entry, origins[name], files)
    # Allocate everything first: copies to a GPU wait while its memory is being allocated.
    state = {
        name: entry if name in converters else _allocate(entry, origins[name], files, device, dtype)
        for name, entry in entries.items()
    }
    # Tensors are read into place, in the dtype that runs: no second copy of a 64 GB checkpoint exists, and bfloat16
    # files never pass through float32.
    with ExitStack() as stack:
        reader = reader or stack.enter_context(Reader(device))
        completions = [
            _begin_read(origins, files, reader, name, target)
            for name, target in state.items()
            if origins[name].tensor in files.shapes and name not in converters
        ]
        shapes = {name: entries[name].shape for name in converters}
        begin_read = partial(_begin_read, origins, files, reader)
        for name, values in read_staged(shapes, begin_read, device=device, dtype=dtype):
            converters[name](values)
        for complete in completions:
            complete()
        # A completion on a GPU lets the stream wait, not this thread, and the caller may use another stream.
        if device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()
    # Assigning keeps the tensors that were just filled; copying would need memory for a second set.
    module.load_state_dict(state, assign=True)
    module.requires_grad_(False).eval()


def _check_shape(name: str, entry: Tensor, origin: Origin, files: Tensors) -> None:
    # Only an optional tensor can be absent here: `_check_names` has refused all others.
    if origin.tensor not in files.shapes:
        return
    shape = _shape(origin, files)
    # The second is a 1x1 convolution that diffusers runs as a linear layer.
    if shape not in (entry.shape, (*entry.shape, 1, 1)):
        raise CheckpointError(
            f"{files.name}: tensor {origin.tensor!r} fills {name} with shape {list(shape)}, but the model needs "
            f"{list(entry.shape)}; use the files of one checkpoint"
        )


def _allocate(empty: Tensor, origin: Origin, files: Tensors, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return memory for an entry that is `empty` on the meta device; zeros if no file has it."""
    if origin.tensor not in files.shapes:
        return torch.zeros(empty.shape, dtype=empty.dtype, device=device)
    return torch.empty(empty.shape, dtype=dtype if empty.is_floating_point() else empty.dtype, device=device)


def _shape(origin: Origin, files: Tensors) -> tuple[int, ...]:
    """Return the shape of the rows that an origin selects from its tensor."""
    return tuple(origin.select_rows(torch.empty(files.shapes[origin.tensor], device="meta")).shape)


def regions(
    module: nn.Module, files: Tensors, origins: Mapping[str, Origin], *, dtype: torch.dtype
) -> dict[str, tuple[Region, ...]]:
    """Return the file regions of a module's parameters, without parameters that the files do not store in `dtype`."""
    found = {name: _row_regions(origins[name], files, dtype) for name, _ in module.named_parameters()}
    return {name: parts for name, parts in found.items() if parts}


def _row_regions(origin: Origin, files: Tensors, dtype: torch.dtype) -> tuple[Region, ...]:
    """Return the file regions of an origin's rows, in order; empty if the rows must be converted."""
    region = files.region(origin.tensor, dtype)
    if region is None or files.shapes[origin.tensor][0] % origin.part_count:
        return ()
    size = region.size // origin.part_count
    return tuple(Region(region.file, region.start + part * size, size) for part in origin.parts)


def _begin_read(origins: Mapping[str, Origin], files: Tensors, reader: Reader, name: str, target: Tensor) -> Completion:
    """Begin to fill `target` with an entry's rows; rows in another dtype are read before this returns."""
    origin = origins[name]
    parts = _row_regions(origin, files, target.dtype)
    # The reader copies bytes and cannot convert a dtype.
    if not parts:
        target.copy_(origin.select_rows(files.read(origin.tensor)).view(target.shape))
        return already_complete
    return reader.read_rows(parts, target)


def _check_names(files: Tensors, origins: Mapping[str, Origin], *, reject_unused: bool) -> None:
    wanted = {origin.tensor for origin in origins.values()}
    missing = sorted(wanted - files.shapes.keys() - OPTIONAL)
    unexpected = sorted(files.shapes.keys() - wanted) if reject_unused else []
    for problem, names in (("missing", missing), ("unexpected", unexpected)):
        if names:
            more = f", and {len(names) - 1} more" if len(names) > 1 else ""
            raise CheckpointError(f"{files.name}: tensor {names[0]!r} is {problem}{more}")
