"""A process that holds a copy of the transformer on a further device and takes part in its leader's denoising.

`worker.rendering.followers` starts it: `python -m worker.rendering.follower DESCRIPTOR`.
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection

import torch

from shared import logs
from shared.settings import Settings
from worker.checkpoint.pinned import device_thread_pool
from worker.lora.hot_swap import AdapterFiles, AdapterSwapper
from worker.model.components import Components
from worker.model.device_group import DeviceGroup
from worker.model.load import load_components
from worker.model.split_transformer import split_forward
from worker.rendering.errors import Disconnected
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
from worker.rendering.native_engine import native_engine

logger = logging.getLogger("flux2.worker.follower")


class _Abandoned(Exception):
    """The leader has ended the denoising."""


class Follower:
    """Does what the leader's messages say until the leader ends.

    Args:
        load: the first message.
    """

    def __init__(self, channel: Channel, load: Load) -> None:
        self._channel = channel
        device = torch.device(load.device)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        # Prompts are the leader's work, so the text encoder stays in its files.
        settings = load.settings.model_copy(update={"text_encoder_place": "streamed"})
        self._components: Components = load_components(settings, device=device, hf_token=load.hf_token)
        self._swapper = AdapterSwapper(self._components, adapter_cache_bytes=load.adapter_cache_bytes)
        self._engine = native_engine(self._components)
        self._preloading = device_thread_pool(device, 1, "flux2-preload")
        self._group: DeviceGroup | None = None

    def run(self) -> None:
        """Answer messages; raises Disconnected when the leader has ended."""
        self._channel.send(Answer())
        while True:
            self._handle(self._channel.receive())

    def _handle(self, message: object) -> None:
        match message:
            case Join():
                self._answer(lambda: self._join(message))
            case Activate(files, mode):
                self._answer(lambda: self._swapper.activate(files, mode=mode, wait=False))
            case Predict(call, alone):
                inputs = call_on(call, self._components.device)
                self._answer(lambda: self._take_part(lambda: self._engine.predict(inputs), is_split=not alone))
            case Denoise():
                self._answer(lambda: self._take_part(lambda: self._denoise(message), is_split=True))
            case _:
                self._handle_between_passes(message)

    def _answer(self, work: Callable[[], object]) -> None:
        try:
            with torch.no_grad():
                work()
        except Disconnected:
            raise
        except Exception as error:
            logger.warning("work for the leader failed", exc_info=error)
            is_in_pass = self._group is not None and self._group.is_in_pass
            is_out_of_memory = isinstance(error, torch.OutOfMemoryError)
            self._channel.send(
                Answer(f"{type(error).__name__}: {error}", is_in_pass=is_in_pass, is_out_of_memory=is_out_of_memory)
            )
        else:
            self._channel.send(Answer())

    def _join(self, message: Join) -> None:
        self._group = DeviceGroup(
            message.meeting_point, rank=message.rank, devices=message.devices, device=self._components.device
        )
        split_forward(self._components.transformer, self._group)
        self._group.open(self._components.transformer)
        self._group.on_pass = self._await_pass

    def _take_part(self, work: Callable[[], object], *, is_split: bool) -> None:
        assert self._group is not None
        try:
            with self._group.dividing(is_split):
                work()
        except _Abandoned:
            logger.info("denoising abandoned")
        finally:
            self._swapper.abandon_passes()

    def _denoise(self, message: Denoise) -> None:
        device = self._components.device
        self._engine.denoise(message.noise.to(device), inputs_on(message.run, device), on_step=self._on_step)

    def _on_step(self, step: int, steps: int) -> None:
        if step == 1:
            self._swapper.wait()

    def _await_pass(self) -> None:
        """Do what the leader's messages say until it starts the next pass."""
        while not isinstance(message := self._channel.receive(), Pass):
            if isinstance(message, Abandon):
                raise _Abandoned
            self._handle_between_passes(message)

    def _handle_between_passes(self, message: object) -> None:
        match message:
            case Preload(files):
                # In a thread: reading takes longer than a pass may wait.
                self._preloading.submit(self._preload, files)
            case BeginNext(files, mode, passes):
                try:
                    self._swapper.begin_next(files, mode=mode, passes=passes)
                except Exception as error:  # noqa: BLE001 - `Activate` meets the same error and answers it
                    logger.info("next adapter swap not begun", extra={"error": f"{type(error).__name__}: {error}"})
            case Abandon():
                # This denoising had ended before the message came.
                pass
            case _:
                raise TypeError(f"unexpected message {type(message).__name__}")

    def _preload(self, files: AdapterFiles) -> None:
        for ref, path in files:
            try:
                self._swapper.preload(ref, path)
            except Exception as error:  # noqa: BLE001 - as for `BeginNext`
                logger.info("adapter not preloaded", extra={"error": f"{type(error).__name__}: {error}"})


def main() -> None:
    """Follow the leader at the other end of the descriptor that the first argument names."""
    # Some service managers send it to all processes of a service. The leader then drains, and ends this process.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    logs.configure(Settings().log)
    channel = Channel(Connection(int(sys.argv[1])))
    try:
        load = channel.receive()
        assert isinstance(load, Load)
        Follower(channel, load).run()
    except Disconnected:
        logger.info("the leader has ended")


if __name__ == "__main__":
    main()
