"""The names and numbers of rows of usage."""

import pytest

from shared.job import AdapterRef
from shared.ledger.usage_rows import Usage, name_adapters


def refs(*paths):
    return [AdapterRef(path=path, sha256="", size_bytes=1, multiplier=index + 0.5) for index, path in enumerate(paths)]


@pytest.mark.parametrize(
    ("paths", "name"),
    [
        ([], "base"),
        (["team/style.safetensors"], "team/style.safetensors"),
        # In any order, and with any multipliers.
        (["b.safetensors", "a.safetensors"], "a.safetensors + b.safetensors"),
        (["a.safetensors", "a.safetensors"], "a.safetensors"),
        (["hf://o/r/f.safetensors@main"], "hf://o/r/f.safetensors@main"),
        (["upload:studio/style@" + "0123456789ab" + 52 * "f"], "upload:studio/style@0123456789ab"),
        (["a\nb\x1b[31m\udc80.safetensors"], "a\\nb\\x1b[31m\\udc80.safetensors"),
        # The first 12 digits of `printf %s id=7 | sha256sum`.
        (["https://h/download?id=7"], "https://h/download?f422c82d6db7"),
    ],
)
def test_adapters_have_one_name_whatever_their_order_and_multipliers_are(paths, name):
    assert name_adapters(refs(*paths)) == name


def test_a_long_name_is_cut_and_stays_another_than_that_of_other_adapters():
    long, longer = refs("a" * 300), refs("a" * 301)

    assert len(name_adapters(long)) == len(name_adapters(longer)) == 160
    assert name_adapters(long) != name_adapters(longer)


def test_numbers_that_a_later_version_added_are_left_out():
    assert Usage.parse("1 2 3 4 5") == Usage(1, 2, 3, 4)
