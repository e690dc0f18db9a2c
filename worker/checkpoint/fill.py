"""Fill a module with the tensors of safetensors files, completely or not at all.

Modules are built without memory (device `meta`) and given their tensors one by one, so no second copy of a 64 GB
checkpoint exists and bfloat16 files never pass through float32. Names are the caller's business: see
`worker.checkpoint.tensor_names`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from shared.errors import CheckpointError
from worker.checkpoint.reader import Completion, Reader, Region, already_complete
from worker.checkpoint.tensor_names import Origin

# Quantised files need their scales applied; casting them would give noise.
_FLOATS = frozenset({"BF16", "F16", "F32"})
# Those that are read as they lie in the file; torch has the same values by other names.
_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
# Counters of training that some exports leave out; evaluation never reads them.
_OPTIONAL = frozenset({"bn.num_batches_tracked"})


class Tensors(Protocol):
    """The tensors of one module, by the names that its origins use; `name` is what to blame in messages."""

    name: str
    shapes: dict[str, tuple[int, ...]]

    def read(self, name: str) -> Tensor:
        """Return one of them, which the caller copies."""

    def region(self, name: str, dtype: torch.dtype) -> Region | None:
        """Return where its values lie in a file, row by row; None if they do not, or are not of this dtype."""


class TensorFiles:
    """The tensors of one module, spread over one or more safetensors files.

    Raises:
        CheckpointError: a file cannot be read as safetensors.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.name = files[0].name if len(files) == 1 else f"{files[0].parent.name}/*.safetensors"
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._holders: dict[str, Any] = {}  # safe_open handles, by tensor
        self._regions: dict[str, Region] = {}
        for file in files:
            try:
                holder: Any = safe_open(file, framework="pt")
            except (OSError, SafetensorError) as error:
                raise CheckpointError(f"{file}: not a readable safetensors file: {error}") from error
            for name in holder.keys():  # noqa: SIM118 - not a mapping
                self.shapes[name] = tuple(holder.get_slice(name).get_shape())
                self._holders[name] = holder
            self._regions |= _regions(file)

    def read(self, name: str) -> Tensor:
        """Return a tensor that lies in the file's pages, not in memory of its own.

        Raises:
            CheckpointError: it is quantised.
        """
        holder = self._holders[name]
        dtype = holder.get_slice(name).get_dtype()
        if dtype not in _FLOATS and name not in _OPTIONAL:
            raise CheckpointError(f"{self.name}: tensor {name!r} holds {dtype} values; only {sorted(_FLOATS)} are used")
        tensor: Tensor = holder.get_tensor(name)
        return tensor

    def region(self, name: str, dtype: torch.dtype) -> Region | None:
        """See `Tensors.region`."""
        same = _DTYPES.get(self._holders[name].get_slice(name).get_dtype()) == dtype
        return self._regions[name] if same else None


def _regions(file: Path) -> dict[str, Region]:
    """Return where each tensor's bytes lie in a file whose header has been checked."""
    with file.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(size))
    return {
        name: Region(file, 8 + size + entry["data_offsets"][0], entry["data_offsets"][1] - entry["data_offsets"][0])
        for name, entry in header.items()
        if name != "__metadata__"
    }


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
    """Give a module that was built on the meta device its tensors, and make it ready for inference.

    Args:
        origins: for each entry of the module's state, the tensor of `files` that holds it.
        alone: whether the files may hold nothing else.
        reader: what reads them, if they are to stay open.

    Raises:
        CheckpointError: a tensor is missing, unexpected or of another shape; `module` is then not to be used.
    """
    _check_names(files, origins, alone=alone)
    # All at first: while a GPU's memory is being allocated, copies to it wait.
    state = {
        name: _room(name, empty, origins[name], files, device, dtype) for name, empty in module.state_dict().items()
    }
    with ExitStack() as held:
        reader = reader or held.enter_context(Reader(device))
        arrivals = [
            _read(origins[name], files, target, reader)
            for name, target in state.items()
            if origins[name].tensor in files.shapes
        ]
        for arrive in arrivals:
            arrive()
        if device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()
    module.load_state_dict(state, assign=True)
    module.requires_grad_(False).eval()


def _room(name: str, empty: Tensor, origin: Origin, files: Tensors, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return memory for a parameter, which is `empty` on the meta device; zeros for what no file has."""
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
    """Return the shape of the rows that an origin takes of its tensor."""
    return tuple(origin.select_rows(torch.empty(files.shapes[origin.tensor], device="meta")).shape)


def regions(module: nn.Module, files: Tensors, origins: Mapping[str, Origin]) -> dict[str, tuple[Region, ...]]:
    """Return where the bytes of a filled module's parameters lie, for those that lie there as they are."""
    found = {name: _regions_of(origins[name], files, weight.dtype) for name, weight in module.named_parameters()}
    return {name: parts for name, parts in found.items() if parts}


def _regions_of(origin: Origin, files: Tensors, dtype: torch.dtype) -> tuple[Region, ...]:
    """Return where an origin's rows lie, in order; nothing if they must be converted."""
    region = files.region(origin.tensor, dtype)
    if region is None or files.shapes[origin.tensor][0] % origin.of:
        return ()
    size = region.size // origin.of
    return tuple(Region(region.file, region.start + part * size, size) for part in origin.parts)


def _read(origin: Origin, files: Tensors, target: Tensor, reader: Reader) -> Completion:
    """Fill `target` with an origin's rows; at once, or by `reader` if they lie in the file as they are needed."""
    parts = _regions_of(origin, files, target.dtype)
    if not parts:
        # A copy even on the CPU: pages of the file would change under us when someone rewrites it.
        target.copy_(origin.select_rows(files.read(origin.tensor)).view(target.shape))
        return already_complete
    return reader.read_rows(parts, target)


def _check_names(files: Tensors, origins: Mapping[str, Origin], *, alone: bool) -> None:
    wanted = {origin.tensor for origin in origins.values()}
    missing = sorted(wanted - files.shapes.keys() - _OPTIONAL)
    unexpected = sorted(files.shapes.keys() - wanted) if alone else []
    for what, names in (("missing", missing), ("unexpected", unexpected)):
        if names:
            more = f"; {len(names) - 1} more are too" if len(names) > 1 else ""
            raise CheckpointError(f"{files.name}: tensor {names[0]!r} is {what}{more}")
