"""Which time counts as that of the device."""

from worker.consumer.device_time import DeviceTime


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
