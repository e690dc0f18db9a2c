"""The grid of Compare: its axes, zoom, difference and ratings."""

import json

import pytest
from console_pages import PHONE, THEMES, HeldCalls, find_violations, submit_images
from PIL import Image

SEEDS = [{"prompt": "a disc", "seed": seed} for seed in (7, 8)]


@pytest.fixture
def jobs(console):
    """Two jobs, with two seeds each: of the base model, and of an adapter. Images of one seed are the same."""
    submitted = [
        submit_images(console.api.http, SEEDS),
        submit_images(console.api.http, SEEDS, lora="neon.safetensors"),
    ]
    console.finish_queued()
    return submitted


@pytest.fixture
def compare(console, open_page, jobs):
    """Open the grid of all images of the two jobs."""

    def open_it(query="", **options):
        page = open_page(console.url, f"#/compare?requests={','.join(jobs)}{query}", **options)
        page.get_by_role("gridcell").first.wait_for()
        return page

    return open_it


def cells(page):
    return page.get_by_role("gridcell")


def transforms(page):
    """Return the transforms that pictures have, each once."""
    return set(page.locator(".zoomed").evaluate_all("(all) => all.map((each) => getComputedStyle(each).transform)"))


def wait_for_pictures(page, selector):
    """Wait until the pictures that a selector finds are loaded."""
    page.wait_for_function(
        "(selector) => [...document.querySelectorAll(selector)].every((each) => each.complete && each.naturalWidth)",
        arg=selector,
    )


def test_what_differs_becomes_rows_and_columns_that_the_address_can_change(compare, expect):
    page = compare()

    expect(page.get_by_role("columnheader")).to_have_text(["Rows", "seed 7", "seed 8"])
    expect(page.get_by_role("rowheader")).to_have_text(["base model", "neon"])
    expect(cells(page)).to_have_count(4)
    page.get_by_role("button", name="Swap rows and columns").click()
    expect(page.get_by_role("columnheader")).to_have_text(["Rows", "base model", "neon"])
    assert "rows=seed&columns=adapter" in page.url

    page.reload()
    expect(page.get_by_role("rowheader")).to_have_text(["seed 7", "seed 8"])
    page.get_by_label("Rows", exact=True).select_option("none")
    expect(cells(page)).to_have_count(2)
    page.get_by_role("button", name="1 / 2").first.click()
    expect(cells(page).first).to_have_attribute("aria-label", "a disc, seed 8, base model")
    page.get_by_label("Seed", exact=True).select_option("8")
    expect(page.get_by_text("2 images of 4")).to_be_attached()
    assert "only-seed=8" in page.url


def test_presets_and_noise_levels_are_compared_too(console, open_page, expect):
    prompts = [{"prompt": "a disc", "seed": 7, "sample_steps": None}]
    few = [{**prompts[0], "sigmas": [1.0, 0.6]}, *prompts]
    jobs = [submit_images(console.api.http, few), submit_images(console.api.http, prompts, preset="turbo")]
    console.finish_queued()

    page = open_page(console.url, f"#/compare?requests={','.join(jobs)}&rows=preset&columns=noise")

    expect(page.get_by_role("rowheader")).to_have_text(["no preset", "preset turbo"])
    expect(page.get_by_role("columnheader").nth(1)).to_have_text("AI Toolkit's levels")
    expect(page.get_by_role("columnheader").nth(2)).to_have_text("levels 1, 0.6")


@pytest.mark.parametrize("theme", THEMES)
def test_the_grid_has_no_serious_fault(theme, compare, axe):
    page = compare(color_scheme=theme)
    page.keyboard.press("4")
    page.keyboard.press("w")

    assert find_violations(page, axe) == []


def test_all_pictures_zoom_and_move_together(compare, expect):
    page = compare()
    assert len(transforms(page)) == 1

    cells(page).nth(1).click()
    page.keyboard.press("+")
    expect(page.get_by_title("Whole picture (0)")).to_have_text("130 %")
    box = cells(page).nth(1).bounding_box()
    page.mouse.move(box["x"] + 40, box["y"] + 40)
    page.mouse.wheel(0, -400)
    zoomed = transforms(page)
    page.mouse.down()
    page.mouse.move(box["x"] + 20, box["y"] + 30, steps=3)
    page.mouse.up()
    moved = transforms(page)
    page.keyboard.press("0")

    assert len(zoomed) == len(moved) == 1
    assert zoomed != moved
    expect(page.get_by_title("Whole picture (0)")).to_have_text("100 %")


def test_the_difference_of_equal_pictures_is_black_while_d_is_held(compare, expect, tmp_path):
    page = compare()
    frames = page.locator(".compare-frame")
    wait_for_pictures(page, ".compare-frame img")

    def center(number):
        frames.nth(number).screenshot(path=tmp_path / "frame.png")
        with Image.open(tmp_path / "frame.png") as picture:
            return picture.convert("RGB").getpixel((picture.width // 2, picture.height // 2))

    assert max(center(2)) > 50
    page.keyboard.down("d")
    # Below the base model's image of seed 7 is the adapter's of the same seed.
    expect(page.locator(".compare-reference")).to_have_count(2)
    wait_for_pictures(page, ".compare-other")
    assert center(2) == (0, 0, 0)
    page.get_by_label("Difference from").select_option("cell")
    assert max(center(3)) > 50
    page.keyboard.up("d")

    expect(page.locator(".compare-other")).to_have_count(0)


def test_ratings_and_the_winner_stay_and_the_best_goes_on(compare, expect, jobs):
    page = compare()

    page.keyboard.press("4")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("x")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("w")
    page.reload()

    expect(cells(page).nth(0)).to_have_attribute("aria-label", "a disc, seed 7, base model, rated 4 of 5")
    expect(cells(page).nth(1)).to_have_attribute("aria-label", "a disc, seed 8, base model, rejected")
    expect(cells(page).nth(3)).to_have_attribute("aria-label", "a disc, seed 8, neon, winner")
    with page.expect_download() as started:
        page.get_by_role("button", name="Export ratings").click()
    exported = json.loads(started.value.path().read_text())["ratings"]
    fields = ("request_id", "index", "rating", "rejected", "winner")
    assert [tuple(line[name] for name in fields) for line in exported] == [
        (jobs[0], 0, 4, False, False),
        (jobs[0], 1, None, True, False),
        (jobs[1], 1, None, False, True),
    ]
    page.get_by_role("button", name="Continue with the best").click()
    expect(page).to_have_title("Create · flux2")
    expect(page.get_by_label("Seed", exact=True)).to_have_value("8")


# Between these presses, what the first one changed is drawn, but effects that wait for a frame have not run.
PRESS_QUICKLY = """async (keys) => {
  for (const key of keys) {
    document.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
    for (let turn = 0; turn < 10; turn += 1) await null;
  }
}"""


def test_arrows_that_follow_each_other_within_a_frame_all_count(compare, expect):
    page = compare()

    page.evaluate(PRESS_QUICKLY, ["ArrowRight", "ArrowDown"])
    expect(cells(page).nth(3)).to_be_focused()
    page.evaluate("""() => { for (const key of ["ArrowLeft", "ArrowUp"])
        document.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true })); }""")

    expect(cells(page).nth(0)).to_be_focused()
    expect(page.locator(".compare-cell.is-active")).to_have_count(1)


def test_the_keys_of_a_grid_work_as_soon_as_it_is_there(console, jobs, open_page, expect):
    page = open_page(console.url, "#/compare")
    expect(page.get_by_role("checkbox")).to_have_count(2)

    page.evaluate(
        """(hash) => {
          const key = new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true });
          new MutationObserver((_, observer) => {
            if (!document.querySelector("[role=gridcell]")) return;
            observer.disconnect();
            setTimeout(() => document.body.dispatchEvent(key));
          }).observe(document.body, { childList: true, subtree: true });
          location.hash = hash;
        }""",
        f"#/compare?requests={jobs[0]}",
    )

    expect(cells(page).nth(1)).to_be_focused()


def test_other_axes_leave_the_focus_where_they_are_chosen(compare, expect):
    page = compare()
    page.keyboard.press("ArrowDown")
    expect(cells(page).nth(2)).to_be_focused()
    rows = page.get_by_label("Rows", exact=True)

    rows.focus()
    rows.select_option("none")

    expect(cells(page)).to_have_count(2)
    expect(rows).to_be_focused()


def test_another_address_shows_its_own_images(console, jobs, open_page, expect):
    page = open_page(console.url, f"#/compare?requests={jobs[0]}")
    expect(cells(page).first).to_have_attribute("aria-label", "a disc, seed 7, base model")

    page.goto(f"{console.url}/#/compare?requests={jobs[1]}")

    expect(cells(page).first).to_have_attribute("aria-label", "a disc, seed 7, neon")


def test_images_that_are_not_loaded_yet_are_not_said_to_be_missing(console, jobs, open_page, expect):
    page = open_page(console.url, "#/compare")
    held = HeldCalls(page, "**/result")
    page.get_by_role("checkbox").first.check()

    with page.expect_request("**/result"):
        page.get_by_role("button", name="Compare 2 images").click()

    expect(page.get_by_role("status", name="Loading images")).to_be_visible()
    expect(page.get_by_role("alert")).to_have_count(0)
    held.send()
    expect(cells(page)).to_have_count(2)


def test_recent_jobs_are_offered_while_nothing_is_chosen(console, jobs, open_page, expect):
    page = open_page(console.url, "#/compare")

    expect(page.get_by_role("checkbox")).to_have_count(2)
    for box in page.get_by_role("checkbox").all():
        box.check()
    page.get_by_role("button", name="Compare 4 images").click()

    expect(cells(page)).to_have_count(4)


def test_a_job_that_is_gone_does_not_hide_the_others(console, compare, jobs, watch, open_page, expect):
    watch.allow("status of 404")
    page = open_page(console.url, f"#/compare?requests=gone,{jobs[0]}")

    expect(page.get_by_text("Request not found: gone")).to_be_visible()
    expect(cells(page)).to_have_count(2)


def test_headings_stay_in_sight_on_a_phone(compare, expect):
    page = compare(viewport=PHONE)
    heading = page.get_by_role("columnheader").last
    row = page.get_by_role("rowheader").last

    before = (heading.bounding_box()["y"], row.bounding_box()["x"])
    page.locator(".compare-scroller").evaluate("(each) => each.scrollTo(60, 60)")

    assert (heading.bounding_box()["y"], row.bounding_box()["x"]) == before
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
