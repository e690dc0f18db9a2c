"""The pictures of a replay next to each other."""

from PIL import Image

from flux2_client import contact_sheet
from flux2_client.contact_sheet import ContactSheet


def flat(value, size=(4, 2)):
    return Image.new("RGB", size, (value, value, value))


def draw(*rows, references=0):
    sheet = ContactSheet(samples=len(rows), references=references)
    for row in rows:
        sheet.add(*row)
    return sheet.draw()


def test_a_row_has_the_trainers_picture_ours_and_the_brightened_difference():
    sheet = draw((flat(10), flat(15)), (flat(0), flat(0)))

    assert sheet.size == (3 * 4 + 2 * 8, 2 * 2 + 8)
    assert sheet.getpixel((0, 0)) == (15, 15, 15)
    assert sheet.getpixel((12, 0)) == (10, 10, 10)
    assert sheet.getpixel((24, 0)) == (20, 20, 20)


def test_reference_images_stand_in_front_scaled_into_the_size_of_the_picture():
    # Half as wide as the picture when it is as high.
    tall = flat(100, (2, 2))

    sheet = draw((flat(10), flat(15), [tall, flat(50, (8, 4))]), references=2)

    # 2 and 4 pixels of references, three pictures of 4 pixels, and 4 gaps.
    assert sheet.size == (2 + 4 + 3 * 4 + 4 * 8, 2)
    assert [sheet.getpixel((left, 1)) for left in (1, 10, 22, 34, 46)] == [
        (value, value, value) for value in (100, 50, 15, 10, 20)
    ]


def test_pictures_stay_in_their_columns_when_rows_have_different_numbers_of_references():
    sheet = draw((flat(10), flat(10)), (flat(20), flat(20), [flat(70)]), references=1)

    assert sheet.size == (4 * 4 + 3 * 8, 2 * 2 + 8)
    assert sheet.getpixel((0, 0)) == (255, 255, 255)
    assert sheet.getpixel((12, 0)) == (10, 10, 10)
    assert sheet.getpixel((0, 10)) == (70, 70, 70)
    assert sheet.getpixel((12, 10)) == (20, 20, 20)


def test_a_reference_that_is_not_on_this_host_leaves_a_grey_cell():
    sheet = draw((flat(10), None, [None]), references=1)

    assert sheet.size == (2 * 4 + 8, 2)
    assert sheet.getpixel((0, 0)) == (211, 211, 211)
    assert sheet.getpixel((12, 0)) == (10, 10, 10)


def test_pictures_of_many_samples_are_shrunk_and_their_differences_are_of_the_pixels(monkeypatch):
    monkeypatch.setattr(contact_sheet, "_MAX_PIXELS", 4 * 3 * 8 * 8)
    # Every other pixel differs; those of the shrunk pictures would not.
    ours, theirs = flat(100, (32, 32)), flat(100, (32, 32))
    for left in range(32):
        for top in range(32):
            theirs.putpixel((left, top), (100 + (20 if (left + top) % 2 else -20),) * 3)

    sheet = draw(*[(ours, theirs)] * 4)

    assert sheet.size == (3 * 8 + 2 * 8, 4 * 8 + 3 * 8)
    assert sheet.getpixel((4, 4)) == (100, 100, 100)
    # 4 times 20.
    assert sheet.getpixel((36, 4)) == (80, 80, 80)
