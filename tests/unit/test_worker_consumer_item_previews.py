"""Previews go from the rendering thread to the lease's, which sends them; Redis' answers are scripted."""

import io
from types import SimpleNamespace

import pytest
from PIL import Image

from shared.errors import LedgerUnavailable
from worker.consumer.item_previews import ItemPreviews

CLAIM = SimpleNamespace(item_id="job:3")


class ScriptedPreviews:
    """A ledger's previews: it says whether they are wanted, and keeps those that are stored."""

    def __init__(self, *, is_wanted=True, error=None):
        self.is_wanted = is_wanted
        self.error = error
        self.asked = 0
        self.stored = []

    def wanted(self):
        self.asked += 1
        return self.is_wanted

    def store(self, item_id, *, step, steps, image_webp):
        if self.error is not None:
            raise self.error
        self.stored.append((item_id, step, steps, image_webp))


class Picture:
    def __init__(self, color="red", *, is_ready=True):
        self.color = color
        self.is_ready = is_ready

    def image(self):
        return Image.new("RGB", (16, 8), self.color)


def test_a_preview_is_due_after_every_fifth_step_but_the_last_once_somebody_wants_them():
    ledger = ScriptedPreviews(is_wanted=False)
    previews = ItemPreviews(ledger, CLAIM, every=5)

    def due():
        return [step for step in range(1, 21) if previews.is_due(step, 20)]

    assert due() == []
    previews.send()
    assert due() == []
    ledger.is_wanted = True
    previews.send()
    assert due() == [5, 10, 15]


@pytest.mark.parametrize(
    ("steps", "due"), [(1, []), (2, [1]), (3, [1, 2]), (4, [1, 2, 3]), (8, [2, 4, 6]), (12, [4, 8]), (15, [5, 10])]
)
def test_an_image_of_few_steps_has_previews_too(steps, due):
    previews = ItemPreviews(ScriptedPreviews(), CLAIM, every=5)
    previews.send()

    assert [step for step in range(1, steps + 1) if previews.is_due(step, steps)] == due


def test_the_newest_preview_is_sent_once():
    ledger = ScriptedPreviews()
    previews = ItemPreviews(ledger, CLAIM, every=5)

    previews.offer(Picture("red"), step=5, steps=20)
    previews.offer(Picture("lime"), step=10, steps=20)
    previews.send()
    previews.send()

    [(item_id, step, steps, data)] = ledger.stored
    assert (item_id, step, steps) == ("job:3", 10, 20)
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.size) == ("WEBP", (16, 8))
        red, green, blue = image.convert("RGB").getpixel((4, 4))
    assert green > 200 > 50 > max(red, blue)


def test_a_preview_that_is_still_on_its_way_from_the_device_is_sent_later():
    ledger, picture = ScriptedPreviews(), Picture(is_ready=False)
    previews = ItemPreviews(ledger, CLAIM, every=5)
    previews.offer(picture, step=5, steps=20)

    previews.send()
    assert ledger.stored == []

    picture.is_ready = True
    previews.send()
    assert [step for _, step, _, _ in ledger.stored] == [5]


@pytest.mark.parametrize("error", [LedgerUnavailable("Redis did not answer"), RuntimeError("CUDA error")])
def test_no_error_of_a_preview_reaches_the_lease(error, caplog):
    previews = ItemPreviews(ScriptedPreviews(error=error), CLAIM, every=5)
    previews.offer(Picture(), step=5, steps=20)

    with caplog.at_level("INFO", "flux2.worker.consumer"):
        previews.send()

    assert [record.getMessage() for record in caplog.records] == ["preview not sent"]


def test_a_worker_without_previews_asks_nobody():
    ledger = ScriptedPreviews()
    previews = ItemPreviews(ledger, CLAIM, every=0)

    previews.send()

    assert (ledger.asked, previews.is_due(5, 20)) == (0, False)
