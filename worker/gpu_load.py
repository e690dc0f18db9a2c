"""Sample how full a GPU's memory is and how much of the time it works, for the slot's reports and `GET /metrics`."""

from __future__ import annotations

import ctypes
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Final

import torch

from shared.metrics.definitions import GPU_MEMORY_RATIO, GPU_UTILIZATION_RATIO
from shared.metrics.tally import PROCESS, Tally

logger = logging.getLogger("flux2.worker.gpu_load")

_PERIOD_S: Final = 10.0
# A device that hangs may never answer; the thread then stays until the process ends.
_JOIN_S: Final = 1.0


@dataclass(frozen=True)
class GpuLoad:
    """A GPU at one moment, with the work of all processes on it.

    Attributes:
        utilization: part of the last second or so in which a kernel ran; None if the driver does not say.
    """

    memory_used_bytes: int
    memory_bytes: int
    utilization: float | None

    def report(self) -> dict[str, str]:
        """Return the fields of a heartbeat."""
        used = "" if self.utilization is None else f"{self.utilization:.2f}"
        return {"gpu_memory_used_bytes": str(self.memory_used_bytes), "gpu_utilization": used}


class GpuLoadSampler:
    """Samples a GPU in a thread of its own inside a `with` block, so that a device that hangs stops no heartbeat.

    Args:
        read: returns the load now, or None if it cannot be had.
        model: whose work the samples are counted as.
        join_s: how long the end of the block waits for the thread.
    """

    def __init__(
        self,
        read: Callable[[], GpuLoad | None],
        *,
        model: str,
        period_s: float = _PERIOD_S,
        join_s: float = _JOIN_S,
        tally: Tally = PROCESS,
    ) -> None:
        self._read = read
        self._model = model
        self._period_s = period_s
        self._join_s = join_s
        self._tally = tally
        self._latest: GpuLoad | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._sample_until_stopped, name="flux2-gpu-load", daemon=True)

    def __enter__(self) -> GpuLoadSampler:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join(self._join_s)

    def report(self) -> Mapping[str, str]:
        """Return the latest load as fields of a heartbeat; empty ones if it is unknown. Any thread may call this."""
        latest = self._latest
        return {"gpu_memory_used_bytes": "", "gpu_utilization": ""} if latest is None else latest.report()

    def sample(self) -> None:
        """Read the load once and count it."""
        load = self._latest = self._read()
        if load is None:
            return
        self._tally.observe(GPU_MEMORY_RATIO, load.memory_used_bytes / load.memory_bytes, self._model)
        if load.utilization is not None:
            self._tally.observe(GPU_UTILIZATION_RATIO, load.utilization, self._model)

    def _sample_until_stopped(self) -> None:
        while not self._stopped.wait(self._period_s):
            self.sample()


def gpu_load_reader(device: torch.device) -> Callable[[], GpuLoad | None]:
    """Return a function that reads the load of a CUDA device."""
    read_utilization = _open_nvml(f"GPU-{torch.cuda.get_device_properties(device).uuid}")

    def read() -> GpuLoad | None:
        try:
            free, total = torch.cuda.mem_get_info(device)
        except RuntimeError:  # base class of torch.AcceleratorError: after a fault, every call fails
            return None
        return GpuLoad(total - free, total, read_utilization())

    return read


class _Utilization(ctypes.Structure):
    """`nvmlUtilization_t`: percent of the time in which a kernel ran, and in which memory was read or written."""

    _fields_ = [("gpu", ctypes.c_uint), ("memory", ctypes.c_uint)]


def _open_nvml(uuid: str) -> Callable[[], float | None]:
    """Return a function that asks NVIDIA's management library, which comes with the driver, for the utilization."""
    # Not through torch, which needs another package for it.
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError as error:
        logger.info("no utilization of the GPU: the driver's libnvidia-ml.so.1 is missing", extra={"error": str(error)})
        return lambda: None
    handle = ctypes.c_void_p()
    status = library.nvmlInit_v2() or library.nvmlDeviceGetHandleByUUID(uuid.encode(), ctypes.byref(handle))
    if status:
        logger.info("no utilization of the GPU: NVML does not know it", extra={"uuid": uuid, "status": status})
        return lambda: None

    def read() -> float | None:
        rates = _Utilization()
        # A part of a GPU (MIG) has none.
        failed = library.nvmlDeviceGetUtilizationRates(handle, ctypes.byref(rates))
        return None if failed else rates.gpu / 100

    return read
