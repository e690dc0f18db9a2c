"""The tree of errors, and what they say about the device and the process: a worker acts on that alone."""

import ast
import inspect
import re
from pathlib import Path

import pytest

from shared import errors

ROOT = Path(__file__).parents[2]

CLASSES = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.Flux2Error)]


def test_only_three_errors_end_the_process():
    assert {kind.__name__ for kind in CLASSES if kind.ends_process} == {"DeviceFault", "WeightsLost", "Stalled"}


@pytest.mark.parametrize("kind", [kind for kind in CLASSES if issubclass(kind, errors.RequestError)])
def test_a_callers_mistake_is_neither_retried_nor_blamed_on_the_device(kind):
    assert not kind.implicates_device
    assert not kind.retryable


@pytest.mark.parametrize(
    "name", ["StorageUnavailable", "SourceUnavailable", "OutOfMemory", "LedgerUnavailable", "LeaseLost", "ItemCanceled"]
)
def test_an_error_with_another_known_cause_is_not_blamed_on_the_device(name):
    assert not getattr(errors, name).implicates_device


@pytest.mark.parametrize("name", ["RunError", "NotFinite", "BlankImage", "DeviceFault", "WeightsLost", "Stalled"])
def test_an_error_that_a_broken_device_can_cause_implicates_it(name):
    assert getattr(errors, name).implicates_device


def test_a_hung_upload_does_not_implicate_the_device():
    assert errors.Stalled("at step 1").implicates_device
    assert not errors.Stalled("at upload", implicates_device=False).implicates_device


def test_the_drawn_tree_is_the_tree_of_the_classes():
    drawn, ancestors = {}, []
    for line in errors.__doc__.splitlines():
        if match := re.match(r"( *)[*+.-] (\w+) ", line):
            ancestors[len(match[1]) // 2 :] = [match[2]]
            drawn[match[2]] = ancestors[-2] if len(ancestors) > 1 else "Exception"

    classes = {name: kind for name, kind in vars(errors).items() if inspect.isclass(kind)}
    assert drawn == {name: kind.__base__.__name__ for name, kind in classes.items()}


def test_every_public_error_class_is_in_the_errors_module():
    elsewhere = []
    for package in ("api", "flux2_client", "shared", "worker"):
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if not isinstance(node, ast.ClassDef) or node.name.startswith("_"):
                    continue
                bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
                if bases & {"Exception", "BaseException", *(kind.__name__ for kind in CLASSES)}:
                    elsewhere.append((file.name, node.name))

    assert {file for file, _ in elsewhere} == {"errors.py"}
