"""What the leader of a group of devices and its followers say to each other, over a pair of connected sockets."""

from __future__ import annotations

import pickle
import threading
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from shared.job import AdapterMode
from shared.settings import ModelSettings
from worker.lora.hot_swap import AdapterFiles
from worker.rendering.denoise import TransformerInputs
from worker.rendering.engine import DenoisingInputs
from worker.rendering.errors import Disconnected


@dataclass(frozen=True)
class Load:
    """Load the model; the first message to a follower."""

    settings: ModelSettings
    device: str
    hf_token: str | None
    adapter_cache_bytes: int


@dataclass(frozen=True)
class Join:
    """Join the group; see `worker.model.device_group.DeviceGroup`."""

    meeting_point: Path
    rank: int
    devices: int


@dataclass(frozen=True)
class Preload:
    """Read adapters that a later item needs; not answered."""

    files: AdapterFiles


@dataclass(frozen=True)
class Activate:
    """Make these adapters current; answered when the files are read, before all weights are written."""

    files: AdapterFiles
    mode: AdapterMode | None


@dataclass(frozen=True)
class BeginNext:
    """Begin the next item's swap; not answered. See `AdapterSwapper.begin_next`."""

    files: AdapterFiles
    mode: AdapterMode | None
    passes: int


@dataclass(frozen=True)
class Predict:
    """Run the transformer once.

    Attributes:
        alone: without the other devices.
    """

    call: TransformerInputs
    alone: bool


@dataclass(frozen=True)
class Denoise:
    """Denoise together with the leader; answered when all passes are queued on the device, or at `Abandon`."""

    noise: torch.Tensor
    run: DenoisingInputs


@dataclass(frozen=True)
class Pass:
    """Start the next pass; not answered."""


@dataclass(frozen=True)
class Abandon:
    """Run no further pass of this denoising; not answered."""


@dataclass(frozen=True)
class Answer:
    """A follower's answer.

    Attributes:
        error: what failed; None after success.
        is_in_pass: whether it failed within a pass, so that the other devices wait for it.
        is_out_of_memory: whether its device has too little memory.
    """

    error: str | None = None
    is_in_pass: bool = False
    is_out_of_memory: bool = False


class Channel:
    """One end of the connection; threads may share it for sending."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def send(self, message: object) -> None:
        """Raises Disconnected if the other process has ended."""
        # Not `Connection.send`: it would pass tensors through shared memory that outlives a killed process.
        data = pickle.dumps(message)
        try:
            with self._lock:
                self._connection.send_bytes(data)
        except OSError as error:
            raise Disconnected from error

    def receive(self) -> object:
        """Raises Disconnected if the other process has ended."""
        try:
            data = self._connection.recv_bytes()
        except (EOFError, OSError) as error:
            raise Disconnected from error
        return pickle.loads(data)

    def poll(self, timeout_s: float = 0.0) -> bool:
        """Return whether a message, or the end of the other process, arrives within `timeout_s`."""
        return self._connection.poll(timeout_s)

    def close(self) -> None:
        self._connection.close()


def inputs_on(run: DenoisingInputs, device: torch.device) -> DenoisingInputs:
    """Return the parameters of a denoising with all tensors on a device."""
    negative, references = run.negative_prompt_embeds, run.references
    if references is not None:
        tokens = None if references.tokens is None else references.tokens.to(device)
        references = replace(references, tokens=tokens, ids=references.ids.to(device), images=())
    return replace(
        run,
        prompt_embeds=run.prompt_embeds.to(device),
        negative_prompt_embeds=None if negative is None else negative.to(device),
        references=references,
    )


def call_on(call: TransformerInputs, device: torch.device) -> TransformerInputs:
    """Return the inputs of a pass with all tensors on a device."""
    return TransformerInputs(**{name: tensor.to(device) for name, tensor in vars(call).items()})
