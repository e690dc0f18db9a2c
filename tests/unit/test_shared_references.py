"""The size that a reference image gets before it is encoded; the expected sizes are worked by hand."""

import pytest

from shared.errors import ReferenceRefused
from shared.job import ItemSpec, ReferenceRef
from shared.references import prepared_size, reference_key

SHA256 = "ab" * 32


@pytest.mark.parametrize(
    ("size", "scaled", "prepared", "box"),
    [
        ((96, 64), (96, 64), (96, 64), (0, 0, 96, 64)),
        ((101, 87), (101, 87), (96, 80), (2, 3, 98, 83)),  # 5 and 7 pixels too many: the smaller half is cut first
        ((64, 512), (64, 512), (64, 512), (0, 0, 64, 512)),  # the shortest side, and exactly 8:1
        ((1024, 1024), (1024, 1024), (1024, 1024), (0, 0, 1024, 1024)),  # the limit: not scaled
        # 1025 pixels more than the limit: times sqrt(1048576 / 1049600) = 0.99951, so 1024.49 and 1023.50.
        ((1025, 1024), (1024, 1023), (1024, 1008), (0, 7, 1024, 1015)),
        ((4000, 3000), (1182, 886), (1168, 880), (7, 3, 1175, 883)),  # 1182.41 and 886.81, truncated
    ],
)
def test_only_large_images_are_scaled_and_all_are_cropped_from_the_centre(size, scaled, prepared, box):
    found = prepared_size(*size)

    assert found.scaled == scaled
    assert (found.width, found.height) == prepared
    assert found.box == box
    assert found.tokens == prepared[0] * prepared[1] // 256


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ((63, 100), "63x100 pixels; each side of a reference needs at least 64"),
        ((100, 63), "each side of a reference needs at least 64"),
        ((513, 64), "may be at most 8 times as long as the other: crop it"),
        ((64, 513), "may be at most 8 times"),
    ],
)
def test_images_that_ai_toolkit_refuses_are_refused(size, words):
    with pytest.raises(ReferenceRefused, match=words):
        prepared_size(*size)


def test_references_are_stored_by_their_content():
    assert reference_key(SHA256) == f"references/{SHA256}"


def test_an_item_without_references_is_stored_as_earlier_versions_store_it(item):
    assert "references" not in item().model_dump_json()


def test_an_item_keeps_its_references_in_json(item):
    spec = item(references=(ReferenceRef(slot=3, sha256=SHA256),))

    assert ItemSpec.model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize("change", [{"slot": 0}, {"slot": 4}, {"sha256": "../x"}, {"sha256": SHA256.upper()}])
def test_a_slot_or_sha256_that_cannot_be_is_refused(change):
    with pytest.raises(ValueError, match="1 validation error"):
        ReferenceRef(**{"slot": 1, "sha256": SHA256} | change)
