"""A process that dies immediately is restarted after growing waits."""

from shared.local.backoff import Backoff


def restart_times(deaths, *, lives_s):
    """Times of the restarts of a process that lives `lives_s` each time and is checked every second."""
    backoff, now, started, times = Backoff(), 0.0, 0.0, []
    while len(times) < deaths:
        if now >= started + lives_s and backoff.is_due(started_s=started, now_s=now):
            times.append(now)
            started = now
        else:
            now += 1.0
    return times


def test_a_process_that_dies_at_once_waits_twice_as_long_each_time_up_to_a_minute():
    times = restart_times(9, lives_s=0.0)

    waits = [later - earlier for earlier, later in zip([0.0, *times], times, strict=False)]
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_a_stable_process_is_restarted_at_once():
    assert restart_times(3, lives_s=40.0) == [40, 80, 120]


def test_a_stable_life_resets_the_waits():
    backoff = Backoff(wait_s=32.0)

    assert backoff.is_due(started_s=10.0, now_s=50.0)

    assert not backoff.is_due(started_s=50.0, now_s=50.0)
    assert backoff.is_due(started_s=50.0, now_s=51.0)
