"""What errors say of the device and of the process; a worker acts on that alone."""

import pytest

from shared import errors

CLASSES = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.Flux2Error)]


def test_only_three_errors_end_the_process():
    assert {kind.__name__ for kind in CLASSES if kind.ends_process} == {"DeviceFault", "WeightsLost", "Stalled"}


@pytest.mark.parametrize("kind", [kind for kind in CLASSES if issubclass(kind, errors.RequestError)])
def test_a_callers_mistake_is_neither_retried_nor_blamed_on_the_device(kind):
    assert not kind.implicates_device
    assert not kind.retryable


@pytest.mark.parametrize(
    "name", ["StorageUnavailable", "OutOfMemory", "LedgerUnavailable", "LeaseLost", "ItemCanceled"]
)
def test_an_error_with_another_known_cause_is_not_blamed_on_the_device(name):
    assert not getattr(errors, name).implicates_device


@pytest.mark.parametrize("name", ["RunError", "NotFinite", "BlankImage", "DeviceFault", "WeightsLost", "Stalled"])
def test_an_error_that_a_broken_device_can_cause_implicates_it(name):
    assert getattr(errors, name).implicates_device


def test_a_hung_upload_does_not_implicate_the_device():
    assert errors.Stalled("at step 1").implicates_device
    assert not errors.Stalled("at upload", implicates_device=False).implicates_device
