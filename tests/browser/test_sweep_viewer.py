"""The page of a sweep, opened from its folder: one file that sends no request, for the mouse and for the keyboard."""

import json

import pytest
from console_pages import DESKTOP, PHONE, find_violations
from swept import PROMPTS, color_of, make_sweep, save_images

from flux2_client.sweeps.best import best_request, read_pick
from flux2_client.sweeps.viewer_page import write_viewer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sweep")


@pytest.fixture(scope="module")
def sweep(folder):
    """A sweep of three checkpoints at two multipliers, with two prompts and two seeds; its first image failed."""
    made = make_sweep(checkpoints=("250", "500", "base"), seeds=(7, 8), sizes=("320x240",), failed=[1])
    saved = save_images(made, folder)
    write_viewer(saved, folder)
    return saved


@pytest.fixture
def show(browser, watch, sweep, folder):
    """Open the page of the sweep; it may request nothing but itself."""
    address = (folder / "index.html").as_uri()
    contexts = []

    def open_it(**options):
        context = browser.new_context(**{"viewport": DESKTOP, "reduced_motion": "reduce", **options})
        contexts.append(context)
        # Nothing takes as long, unless other tests have the processors.
        context.set_default_timeout(30_000)
        watch.watch(context, hosts={""})
        page = context.new_page()
        page.goto(address)
        return page

    yield open_it

    for context in contexts:
        context.close()
    assert not watch.faults, "\n".join(watch.faults)
    fetched = {request.url for request in watch.requests if not request.url.startswith(("data:", "blob:"))}
    assert fetched <= {address}


def cells(page):
    return page.get_by_role("gridcell")


def color_at(picture):
    """Return the color in the middle of a picture, as the browser decoded it."""
    return picture.evaluate(
        """async (image) => {
            await image.decode();
            const canvas = document.createElement("canvas");
            [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
            const context = canvas.getContext("2d");
            context.drawImage(image, 0, 0);
            return [...context.getImageData(canvas.width / 2, canvas.height / 2, 1, 1).data].slice(0, 3);
        }"""
    )


def shows(picture, number):
    return all(abs(one - other) <= 3 for one, other in zip(color_at(picture), color_of(number), strict=True))


def test_axes_are_chosen_as_rows_and_columns_and_the_others_held(show, expect):
    page = show()

    expect(page.get_by_role("columnheader")).to_have_text(["Checkpoint", "multiplier 0.6", "multiplier 1"])
    expect(page.get_by_role("rowheader")).to_have_text(["250", "500", "base"])
    expect(cells(page).nth(0)).to_have_text("failed: it <broke>")
    # Each adapter has 4 images: 1 to 4 of 250 at 0.6, and 17 to 20 of the base model, which is in both columns.
    assert [
        shows(cells(page).nth(place).locator("img"), number) for place, number in ((1, 5), (2, 9), (4, 17), (5, 17))
    ] == [True] * 4

    page.get_by_label("Seed", exact=True).select_option("seed 8")
    page.get_by_label("Prompt", exact=True).select_option("prompt 2: a house\\u202e in the rain")
    assert shows(cells(page).nth(2).locator("img"), 12)

    page.get_by_label("Columns", exact=True).select_option("Seed")
    expect(page.get_by_role("columnheader")).to_have_text(["Checkpoint", "seed 7", "seed 8"])
    page.get_by_role("button", name="Swap rows and columns").click()
    expect(page.get_by_role("rowheader")).to_have_text(["seed 7", "seed 8"])
    expect(page.get_by_role("columnheader")).to_have_text(["Seed", "250", "500", "base"])
    assert page.get_by_role("button", name="Swap rows and columns").evaluate(
        "(each) => each === document.activeElement"
    )


def test_the_keyboard_alone_rates_zooms_and_picks_the_best_which_becomes_a_request(show, expect, sweep, folder):
    page = show()
    focused = page.locator("[role=gridcell]:focus")
    cells(page).first.focus()

    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("4")
    expect(focused.get_by_label("4 of 5 stars")).to_be_visible()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name="Image")
    expect(dialog).to_contain_text("500, multiplier 1, seed 7")
    before = dialog.locator("img").bounding_box()["width"]
    page.keyboard.press("+")
    page.keyboard.press("+")
    assert dialog.locator("img").bounding_box()["width"] > 1.5 * before
    page.keyboard.press("ArrowLeft")
    expect(dialog).to_contain_text("500, multiplier 0.6, seed 7")
    page.keyboard.press("5")
    page.keyboard.press("b")
    page.keyboard.press("Escape")
    expect(focused).to_contain_text("Best")
    # Outside the words that describe it, what the rating averages is a table.
    expect(page.locator("#ranking tbody tr")).to_have_text(["500, multiplier 0.65.001", "500, multiplier 14.001"])
    with page.expect_download() as download:
        page.get_by_role("button", name="Download best.json").press("Enter")

    assert download.value.suggested_filename == "best.json"
    download.value.save_as(folder / "best.json")
    assert json.loads((folder / "best.json").read_text())["ratings"] == {"9": 5, "13": 4}
    request = best_request(sweep, folder, read_pick(None, sweep, folder))
    assert request["loras"][0]["path"] == "run/a_500.safetensors"
    assert request["loras"][0]["network_multiplier"] == 0.6
    assert [prompt["prompt"] for prompt in request["prompts"]] == [PROMPTS[0]] * 2 + [PROMPTS[1]] * 2


def test_ratings_are_there_again_when_the_page_is_opened_again(show, expect):
    page = show()
    cells(page).nth(1).focus()
    page.keyboard.press("3")
    page.keyboard.press("b")

    page.reload()

    expect(cells(page).nth(1).get_by_label("3 of 5 stars")).to_be_visible()
    expect(page.locator("#picked")).to_contain_text("Best: 250, multiplier 1, seed 7")
    cells(page).nth(1).focus()
    page.keyboard.press("0")
    page.keyboard.press("b")
    expect(page.locator("#ranking")).to_be_hidden()
    expect(page.get_by_role("button", name="Download best.json")).to_be_disabled()


def test_the_mouse_zooms_and_its_buttons_do_what_the_keys_do(show, expect):
    page = show()
    cells(page).nth(3).click()
    dialog = page.get_by_role("dialog", name="Image")

    dialog.get_by_role("button", name="100 %").click()
    expect(dialog).to_contain_text("100 %")
    assert dialog.locator("img").bounding_box()["width"] == 320
    dialog.get_by_role("button", name="Rate 2 of 5").click()
    dialog.get_by_role("button", name="Pick as best").click()
    expect(dialog.get_by_role("button", name="Not the best")).to_be_visible()
    expect(dialog.get_by_role("link", name="Open the file")).to_have_attribute(
        "href", r"images/00013-500-x1-prompt1-seed7.png"
    )
    dialog.get_by_role("button", name="Left").click()
    expect(dialog).to_contain_text("500, multiplier 0.6")
    dialog.get_by_role("button", name="Close").click()
    expect(dialog).to_be_hidden()
    expect(page.locator("#picked")).to_contain_text("500, multiplier 1")


@pytest.mark.parametrize(("theme", "viewport"), [("light", DESKTOP), ("dark", PHONE)])
def test_the_page_has_no_serious_fault_in_either_theme(theme, viewport, show, axe, expect):
    page = show(color_scheme=theme, viewport=viewport)
    cells(page).nth(2).focus()
    page.keyboard.press("4")
    page.keyboard.press("b")

    found = find_violations(page, axe)
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog", name="Image")).to_be_visible()
    found += find_violations(page, axe)

    assert found == []
    background = page.evaluate("getComputedStyle(document.querySelector('dialog')).backgroundColor")
    assert background == {"light": "rgb(255, 255, 255)", "dark": "rgb(18, 18, 18)"}[theme]
