"""The order in which GPUs that exchange heads read and write each other's memory, from what they queue on streams."""

import sys
import weakref
from collections import defaultdict
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch

from worker.model import peer_exchange
from worker.model.heads import Heads
from worker.model.token_split import RowLimits, split_tokens

CPU = torch.device("cpu")
HEADS, WIDTH = 8, 4


class Trace:
    """The work that all devices queue, as numbered steps.

    Attributes:
        before: for each step, steps that end before it begins.
        reads, writes: (step, device that queued it, buffer).
        noted: steps by their name.
    """

    def __init__(self):
        self.before = []
        self.reads, self.writes = [], []
        self.noted = defaultdict(list)
        self._barriers = defaultdict(list)

    def add(self, stream, *, after=None):
        self.before.append({step for step in (stream.last, after) if step is not None})
        stream.last = len(self.before) - 1
        return stream.last

    def add_barrier(self, stream, rank, channel):
        self._barriers[channel, rank].append(self.add(stream))

    def join_barriers(self, devices):
        """Let each barrier wait for what comes before the same barrier of the other devices."""
        for channel in {channel for channel, _ in self._barriers}:
            for together in zip(*(self._barriers[channel, rank] for rank in range(devices)), strict=True):
                earlier = set().union(*(self.before[step] for step in together))
                for step in together:
                    self.before[step] = earlier

    def all_before(self, step):
        found, left = set(), [step]
        while left:
            new = self.before[left.pop()] - found
            found |= new
            left += new
        return found


class Stream:
    def __init__(self, trace):
        self.trace, self.last = trace, None

    def wait_stream(self, other):
        self.wait_event(other.record_event())

    def record_event(self):
        return self.last

    def wait_event(self, event):
        self.trace.add(self, after=event)


class Returned:
    """The returned rows of one device."""

    def __init__(self, device, buffer):
        self._device, self._buffer = device, buffer

    def flatten(self, _):
        return self

    def __getitem__(self, _):
        return self

    def copy_(self, _):
        self._device.access(writes=[self._buffer])

    def clone(self):
        self._device.access(reads=[self._buffer])
        return torch.zeros(1)


class Device:
    """One device's streams, and stand-ins for its memory and its kernels that note what they read and write."""

    def __init__(self, trace, rank, devices):
        self.trace, self.rank, self.devices = trace, rank, devices
        self.stream = Stream(trace)

    def access(self, *, reads=(), writes=()):
        step = self.trace.add(self.stream)
        self.trace.reads += [(step, self.rank, buffer) for buffer in reads]
        self.trace.writes += [(step, self.rank, buffer) for buffer in writes]
        return step

    @contextmanager
    def on(self, stream):
        before, self.stream = self.stream, stream
        yield
        self.stream = before

    def memory(self, _, rows, **__):
        return SimpleNamespace(
            rows=rows,
            addresses=range(4),
            wait_for_all=lambda channel: self.trace.add_barrier(self.stream, self.rank, channel),
            sequence=lambda length: (length,),
            returned=lambda _, device=None: Returned(self, ("returned", self.rank if device is None else device)),
        )

    def staging(self, *_, **__):
        return SimpleNamespace(addresses=None, transfer=self.transfer)

    def transfer(self):
        others = [("heads", device) for device in range(self.devices) if device != self.rank]
        self.trace.noted["transfer"].append(self.access(reads=[("staged", self.rank)], writes=others))

    def send(self, *_, receivers, staged_by, **__):
        if staged_by is None:
            self.access(writes=[("heads", device) for device in receivers])
        else:
            self.access(writes=[("heads", self.rank), ("staged", self.rank)])

    def attend(self, length):
        self.access(reads=[("heads", self.rank)])
        return torch.zeros(1, length, HEADS // self.devices, WIDTH)

    def return_rows(self, *_, **__):
        self.access(writes=[("returned", device) for device in range(self.devices)])

    def gate_up(self):
        self.trace.noted["gate_up"].append(self.access())


def heads(count):
    return Heads(*torch.zeros(3, 1, count, HEADS, WIDTH), torch.ones(WIDTH), torch.ones(WIDTH))


def queue_passes(device, splits):
    """Queue a pass of two double and three single blocks for each split; one single block has hooks."""
    exchange = peer_exchange.PeerExchange(None, device=CPU, heads=HEADS, width=WIDTH, dtype=torch.bfloat16)
    for split in splits:
        exchange.begin(split)
        counts = len(split.double.text[device.rank]), len(split.double.image[device.rank])
        single = split.single.count(device.rank)
        of_double, of_single = torch.zeros(2, sum(counts), WIDTH), torch.zeros(2, single, WIDTH)
        projection = SimpleNamespace(heads=lambda single=single: heads(single), gate_up=device.gate_up)
        for _ in range(2):
            exchange.attend([heads(count) for count in counts], of_double, 1e-6)
        exchange.project_and_attend(projection, of_single, 1e-6)
        exchange.project_and_attend(projection, of_single, 1e-6)
        exchange.attend([heads(single)], of_single, 1e-6)
        exchange.project_and_attend(projection, of_single, 1e-6)
        exchange.gather_image(torch.zeros(1, counts[1], HEADS * WIDTH))


@pytest.fixture
def stand_in(monkeypatch):
    """Let the exchanges that are made from now on be one device's."""

    def stand_in(device):
        cuda = {
            "Stream": lambda *_, **__: Stream(device.trace),
            "current_stream": lambda _: device.stream,
            "stream": device.on,
            "device": lambda _: nullcontext(),
            "synchronize": lambda _: None,
        }
        for name, replacement in cuda.items():
            monkeypatch.setattr(torch.cuda, name, replacement)
        group = SimpleNamespace(get_rank=lambda _: device.rank, get_world_size=lambda _: device.devices)
        monkeypatch.setattr(peer_exchange, "dist", group)
        monkeypatch.setattr(peer_exchange, "SharedMemory", device.memory)
        monkeypatch.setattr(peer_exchange, "Staging", device.staging)
        monkeypatch.setattr(peer_exchange, "attend", device.attend)
        # The kernels' module needs Triton.
        monkeypatch.setitem(sys.modules, "worker.kernels.exchange_kernel", device)

    return stand_in


@pytest.fixture
def trace_of(stand_in):
    def trace_of(devices):
        trace = Trace()
        # The text's parts of the second split are too short for double blocks, so each device computes all text.
        limits = RowLimits(double=3, single=1)
        splits = [split_tokens(text=text, image=24, devices=devices, limits=limits) for text in (16, 4, 16)]
        for rank in range(devices):
            device = Device(trace, rank, devices)
            stand_in(device)
            queue_passes(device, splits)
        trace.join_barriers(devices)
        return trace

    return trace_of


@pytest.mark.parametrize("devices", [2, 4])
def test_no_device_overwrites_what_another_one_still_reads(trace_of, devices):
    queued = trace_of(devices)

    before = [queued.all_before(step) for step in range(len(queued.before))]

    # A step that waits for itself would never run.
    assert not [step for step, earlier in enumerate(before) if step in earlier]
    conflicts = [
        (buffer, first, second)
        for first, writer, buffer in queued.writes
        for accesses in (queued.reads, queued.writes)
        for second, device, other in accesses
        # Several devices write to one buffer at the same time, each its own rows.
        if buffer == other and first != second and (accesses is queued.reads or device == writer)
    ]
    assert conflicts
    assert not [found for found in conflicts if found[1] not in before[found[2]] and found[2] not in before[found[1]]]


def test_gate_and_up_are_queued_before_the_transfer_of_their_own_block_and_neither_waits_for_the_other(trace_of):
    queued = trace_of(2)

    transfers, products = queued.noted["transfer"], queued.noted["gate_up"]

    # Two devices, three passes, three single blocks without hooks.
    assert len(transfers) == 2 * 3 * 3
    for transfer, product in zip(transfers, products, strict=True):
        assert product < transfer
        assert transfer not in queued.all_before(product)
        assert product not in queued.all_before(transfer)


def test_the_memory_of_smaller_images_is_freed_before_that_of_larger_ones_is_allocated(stand_in, monkeypatch):
    class Buffer(SimpleNamespace):
        """Memory of either kind."""

    held, still_held = [], []

    def allocate(*_, **__):
        still_held.append(sum(ref() is not None for ref in held))
        held.append(weakref.ref(new := Buffer(rows=len(held))))
        return new

    stand_in(Device(Trace(), 0, 2))
    monkeypatch.setattr(peer_exchange, "SharedMemory", allocate)
    monkeypatch.setattr(peer_exchange, "Staging", allocate)
    exchange = peer_exchange.PeerExchange(None, device=CPU, heads=HEADS, width=WIDTH, dtype=torch.bfloat16)

    for image in (8, 16):
        exchange.begin(split_tokens(text=4, image=image, devices=2, limits=RowLimits(double=1, single=1)))

    # Shared memory and staging of the first image, then of the second.
    assert still_held == [0, 1, 0, 1]
