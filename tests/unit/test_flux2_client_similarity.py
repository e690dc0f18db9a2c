"""Rendered images are compared with the trainer's samples."""

import math

import pytest
from PIL import Image

from flux2_client.similarity import compare_images, find_trainer_samples
from shared.errors import NoSamples


def flat(value, size=(4, 2)):
    return Image.new("RGB", size, (value, value, value))


def test_equal_images_have_no_difference():
    found = compare_images(flat(7), flat(7))

    assert (found.mean, found.maximum, found.psnr_db) == (0, 0, math.inf)


def test_a_uniform_difference_is_measured_as_worked_by_hand():
    found = compare_images(flat(10), flat(15))

    # Mean square 25: 10 log10(255^2 / 25) = 10 log10(2601) = 34.15 dB.
    assert (found.mean, found.maximum) == (5.0, 5)
    assert found.psnr_db == pytest.approx(34.1514, abs=1e-3)


def test_one_pixel_of_one_channel_counts_for_its_share():
    other = flat(0)
    other.putpixel((0, 0), (24, 0, 0))

    # 24 in one of 4 * 2 * 3 values.
    assert (compare_images(flat(0), other).mean, compare_images(flat(0), other).maximum) == (1.0, 24)


def test_images_of_different_sizes_are_not_compared():
    with pytest.raises(ValueError, match="sizes differ: 4x2 and 2x2"):
        compare_images(flat(0), flat(0, (2, 2)))


def test_the_last_steps_samples_are_found_by_their_index(tmp_path):
    for name in ("17__000000250_0.jpg", "18__000000500_0.jpg", "18__000000500_1.jpg", "notes.txt"):
        (tmp_path / name).touch()

    last = find_trainer_samples(tmp_path)

    assert {index: path.name for index, path in last.items()} == {0: "18__000000500_0.jpg", 1: "18__000000500_1.jpg"}


def test_a_folder_without_samples_is_named_in_the_error(tmp_path):
    (tmp_path / "notes.txt").touch()

    with pytest.raises(NoSamples, match=f"{tmp_path} has no sample images"):
        find_trainer_samples(tmp_path)


def test_the_error_says_how_samples_are_named_and_what_the_folder_holds(tmp_path):
    with pytest.raises(NoSamples, match=r"e\.g\. 17__000000250_0\.jpg; it is empty"):
        find_trainer_samples(tmp_path)
    for number in range(5):
        (tmp_path / f"sample-{number}.png").touch()
    with pytest.raises(NoSamples, match=r"it holds sample-0\.png, sample-1\.png, sample-2\.png and 2 more"):
        find_trainer_samples(tmp_path)


@pytest.mark.parametrize("folder", ["samples", "my_lora/samples"])
def test_the_error_names_the_folder_below_that_has_samples(tmp_path, folder):
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / "17__000000250_0.jpg").touch()

    with pytest.raises(NoSamples, match=f"did you mean --samples {tmp_path / folder}"):
        find_trainer_samples(tmp_path)
