"""How heads travel from one device's staging memory to the others."""

import ctypes
from types import SimpleNamespace

import pytest
import torch

from worker.model.peer_memory import Staging
from worker.model.token_split import CPU_LIMITS, split_tokens

HEADS, WIDTH = 8, 4


def memories(devices, rows):
    """Stand-ins for the `SharedMemory` of each device, all in this process."""
    share = HEADS // devices
    buffers = torch.zeros(devices, 3, rows, share, WIDTH, dtype=torch.bfloat16)
    addresses = torch.tensor([[part.data_ptr() for part in device] for device in buffers]).T.contiguous()

    def seen_by(rank):
        def sequence(length, *, device=None):
            parts = buffers[rank if device is None else device]
            return tuple(part[None, :length] for part in parts)

        return SimpleNamespace(sequence=sequence, addresses=addresses)

    return buffers, [seen_by(rank) for rank in range(devices)]


def memory_at(address, shape):
    count = torch.Size(shape).numel()
    return torch.frombuffer((ctypes.c_int16 * count).from_address(address), dtype=torch.bfloat16).view(shape)


@pytest.mark.parametrize("devices", [2, 4])
def test_staged_heads_arrive_in_the_rows_of_their_tokens(devices):
    sequence = split_tokens(text=5, image=11, devices=devices, limits=CPU_LIMITS).single
    everything = torch.randn(3, 16, HEADS, WIDTH, generator=torch.Generator().manual_seed(1)).bfloat16()
    buffers, seen = memories(devices, rows=20)
    share = HEADS // devices

    for rank, memory in enumerate(seen):
        staging = Staging(sequence, memory, rank=rank)
        rows = sequence.rows(rank, torch.device("cpu")).long()
        # As the kernel does: this device's heads at the rows of its tokens, the others' in the order of its tokens.
        for index, values in enumerate(everything):
            for device, of_device in enumerate(values[rows].split(share, dim=1)):
                address = int(staging.addresses[index, device])
                if device == rank:
                    memory_at(address, (20, share, WIDTH))[rows] = of_device
                else:
                    memory_at(address, of_device.shape).copy_(of_device)
        staging.transfer()

    for device, buffer in enumerate(buffers):
        assert torch.equal(buffer[:, :16], everything[:, :, device * share : (device + 1) * share])
        assert not buffer[:, 16:].any()
