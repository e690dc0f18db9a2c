"""Start the followers of this process and lead them: several devices then denoise each image together.

The leader claims, encodes prompts, decodes and stores. Its followers hold the same weights, merge the same adapters,
and run the same passes, each for a part of the tokens (`worker.model.split_transformer`).
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import Tensor

from shared.errors import CheckpointError, DeviceFault
from shared.job import AdapterMode
from shared.local.guarded_process import GuardedProcess
from shared.settings import ModelSettings
from worker.lora.hot_swap import AdapterFiles
from worker.model.components import Components
from worker.model.device_group import DeviceGroup
from worker.model.split_transformer import split_forward
from worker.rendering.denoise import TransformerInputs
from worker.rendering.engine import DenoisingInputs, Engine
from worker.rendering.errors import Disconnected, GroupOutOfMemory
from worker.rendering.follower_messages import (
    Abandon,
    Activate,
    Answer,
    BeginNext,
    Channel,
    Denoise,
    Join,
    Load,
    Pass,
    Predict,
    Preload,
    call_on,
    inputs_on,
)

logger = logging.getLogger("flux2.worker.rendering")

_HOST = torch.device("cpu")
# Loading from slow storage and compiling take minutes; a follower that dies is noticed at once.
_START_S = 3600.0
# A follower queues its passes while the device runs the leader's.
_ANSWER_S = 120.0


class _Follower:
    """One follower's process and the channel to it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "worker.rendering.follower", str(theirs.fileno())]
            self.process = GuardedProcess(
                command, environment=os.environ, output=sys.stderr.buffer, pass_fds=[theirs.fileno()]
            )
        self.channel = Channel(Connection(ours.detach()))

    def send(self, message: object) -> None:
        try:
            self.channel.send(message)
        except Disconnected as error:
            raise self._ended() from error

    def answer(self, *, timeout_s: float) -> Answer:
        """Return the next answer.

        Raises:
            DeviceFault: the process has ended, or does not answer in time.
        """
        if not self.channel.poll(timeout_s):
            raise DeviceFault(f"the follower on {self.device} did not answer within {timeout_s:g} s")
        try:
            answer = self.channel.receive()
        except Disconnected as error:
            raise self._ended() from error
        assert isinstance(answer, Answer)
        return answer

    def _ended(self) -> DeviceFault:
        # Its sockets close a moment before its status is known.
        status = self.process.status
        how = "" if status is None else f" with status {status}"
        return DeviceFault(f"the follower on {self.device} has ended{how}")


class Followers:
    """The followers of this process.

    The constructor starts them, and they load the model while this process does.

    Args:
        settings: of the model, the same for all.
        devices: one for each follower.
    """

    def __init__(
        self,
        settings: ModelSettings,
        devices: Sequence[torch.device],
        *,
        hf_token: str | None,
        adapter_cache_bytes: int,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="flux2-group-")
        self._followers: list[_Follower] = []
        self._group: DeviceGroup | None = None
        try:
            for device in devices:
                follower = _Follower(device)
                self._followers.append(follower)
                follower.send(Load(settings, str(device), hf_token, adapter_cache_bytes))
        except BaseException:
            self.close()
            raise

    @property
    def devices(self) -> int:
        """Number of devices that denoise together, with this process'; 1 if this process renders alone."""
        return 1 + len(self._followers)

    def join(self, components: Components) -> None:
        """Wait until the followers have loaded the model, and form the group; this process then still renders alone.

        Raises:
            CheckpointError: a follower could not load the model, or these devices cannot render together.
        """
        try:
            self._collect(timeout_s=_START_S)
            meeting_point = Path(self._folder.name, "group")
            for rank, follower in enumerate(self._followers, start=1):
                follower.send(Join(meeting_point, rank, self.devices))
            group = DeviceGroup(meeting_point, rank=0, devices=self.devices, device=components.device)
            split_forward(components.transformer, group)
            group.open(components.transformer)
            self._collect(timeout_s=_ANSWER_S)
        # torch.distributed raises RuntimeError.
        except (DeviceFault, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{error}; the lines above say why, or leave out --gpus-per-slot") from error
        group.on_pass = self._start_pass
        self._group = group

    @torch.no_grad()
    def check(self, engine: Engine, call: TransformerInputs) -> bool:
        """Compare a pass on all devices with the same pass on this device; if a bit differs, end the followers.

        Returns:
            Whether all bits are equal.

        Raises:
            CheckpointError: a device of the group has too little memory for the pass.
            DeviceFault: a follower failed.
        """
        try:
            differing = self._count_differing(engine, call)
        except GroupOutOfMemory as error:
            raise CheckpointError(
                f"{error} for a typical step; choose a smaller precision, or GPUs with more memory"
            ) from error
        if differing:
            logger.error(
                "this slot renders on one device: several give other bits", extra={"values_differing": differing}
            )
            self.close()
        return not differing

    def _count_differing(self, engine: Engine, call: TransformerInputs) -> int:
        # First alone, so that all have compiled their code: a device does not wait minutes for another one.
        self._send(Predict(call_on(call, _HOST), alone=True))
        expected = engine.predict(call)
        self._collect(timeout_s=_START_S)
        return int((self.predict(engine, call) != expected).sum())

    def predict(self, engine: Engine, call: TransformerInputs) -> Tensor:
        """Run the transformer once on all devices."""
        with self._together(Predict(call_on(call, _HOST), alone=False)):
            return engine.predict(call)

    def preload(self, files: AdapterFiles) -> None:
        """Let the followers read adapters that a later item needs; any thread may call this."""
        if files:
            self._send(Preload(tuple(files)))

    @contextmanager
    def activating(self, files: AdapterFiles, *, mode: AdapterMode | None) -> Iterator[None]:
        """Let the followers make these adapters current while this process does so inside the `with` block.

        Raises:
            DeviceFault: a follower failed where this process did not.
            GroupOutOfMemory: a follower has too little memory.
        """
        self._send(Activate(tuple(files), mode))
        try:
            yield
        except BaseException:
            self._collect(timeout_s=_ANSWER_S, may_fail=True)
            raise
        self._collect(timeout_s=_ANSWER_S)

    def begin_next(self, files: AdapterFiles, *, mode: AdapterMode | None, passes: int) -> None:
        """Let the followers begin the next item's swap; see `AdapterSwapper.begin_next`."""
        self._send(BeginNext(tuple(files), mode, passes))

    @contextmanager
    def denoising(self, noise: Tensor, run: DenoisingInputs) -> Iterator[None]:
        """Divide the passes inside the `with` block, which must be those of this denoising, among all devices.

        Raises:
            DeviceFault: a follower failed, or this process did within a pass, so that the others wait for it.
            GroupOutOfMemory: the same, for lack of memory.
        """
        with self._together(Denoise(noise.to(_HOST), inputs_on(run, _HOST))):
            yield

    def close(self) -> None:
        """End the followers; safe to repeat."""
        followers, self._followers = self._followers, []
        for follower in followers:
            follower.channel.close()
            follower.process.stop(grace_s=0)
        group, self._group = self._group, None
        if group is not None:
            group.close()
        self._folder.cleanup()

    @contextmanager
    def _together(self, message: Denoise | Predict) -> Iterator[None]:
        assert self._group is not None
        self._send(message)
        try:
            with self._group.dividing(True):
                yield
        except (DeviceFault, GroupOutOfMemory):
            # Of a follower, whose answer has come or will never come.
            raise
        except BaseException as error:
            if self._group.is_in_pass and isinstance(error, torch.OutOfMemoryError):
                raise GroupOutOfMemory(str(error).partition(". ")[0]) from error
            if self._group.is_in_pass:
                raise DeviceFault(f"a pass on several devices failed: {type(error).__name__}: {error}") from error
            self._send(Abandon())
            self._collect(timeout_s=_ANSWER_S, may_fail=True)
            raise
        self._collect(timeout_s=_ANSWER_S)

    def _start_pass(self) -> None:
        """Start a pass on all devices, unless a follower has failed."""
        for follower in self._followers:
            if follower.channel.poll():
                _raise(follower, follower.answer(timeout_s=0))
        self._send(Pass())

    def _send(self, message: object) -> None:
        for follower in self._followers:
            follower.send(message)

    def _collect(self, *, timeout_s: float, may_fail: bool = False) -> None:
        """Wait for an answer from every follower.

        Raises:
            DeviceFault: one has ended or does not answer, or failed within a pass, or although it may not.
            GroupOutOfMemory: the failure is a lack of memory.
        """
        for follower in self._followers:
            answer = follower.answer(timeout_s=timeout_s)
            if answer.is_in_pass or not may_fail:
                _raise(follower, answer)


def _raise(follower: _Follower, answer: Answer) -> None:
    if answer.is_out_of_memory:
        raise GroupOutOfMemory(f"the follower on {follower.device} has too little memory")
    if answer.error is not None:
        raise DeviceFault(f"the follower on {follower.device} failed: {answer.error}")
