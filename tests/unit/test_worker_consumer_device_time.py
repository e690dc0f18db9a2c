"""Which time counts as that of the device."""

import pytest

from worker.consumer.device_time import DeviceTime
from worker.consumer.slot import Slot


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_the_time_between_start_and_stop_counts_and_none_between_stop_and_start():
    clock = Clock()
    time = DeviceTime(clock)

    clock.now += 5
    assert time.seconds == 0
    time.start()
    clock.now += 2
    assert time.seconds == 2
    time.start()
    clock.now += 1
    time.stop()
    clock.now += 40
    time.stop()
    assert time.seconds == 3
    time.start()
    clock.now += 4

    assert time.seconds == 7


@pytest.mark.parametrize(("device", "counted_s"), [("cpu", 3), ("cuda:1", 3), ("cuda:0,cuda:1", 6)])
def test_each_device_of_a_slot_counts(device, counted_s):
    clock = Clock()
    slot = Slot(name="a", model="flux2", device=device, revision="r", precision="bf16", engines=("exact",))
    time = DeviceTime(clock, devices=slot.devices)

    time.start()
    clock.now += 2
    time.stop()
    time.start()
    clock.now += 1

    assert time.seconds == counted_s
