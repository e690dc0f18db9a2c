"""Sweeps in Compare: the list of them, their grid while and after they are rendered, and their end."""

import re

import pytest
from console_pages import PHONE, find_violations

SWEEP = {
    "model": "flux2",
    "prompts": [{"prompt": "a disc", "width": 128, "height": 96, "sample_steps": 4}],
    "checkpoints": [{"path": "neon.safetensors", "label": "trained"}, {"path": None, "label": "untrained"}],
    "multipliers": [0.5, 1.0],
    "seeds": [7, 8],
}


@pytest.fixture
def sweep(console):
    """The id of a sweep of six images, none of which is rendered."""
    answer = console.api.http.post("/v1/sweeps", json=SWEEP)
    assert answer.status_code == 202, answer.text
    return answer.json()["sweep_id"]


def test_a_finished_sweep_is_a_grid_of_its_checkpoints(console, sweep, open_page, expect):
    console.finish_queued()
    page = open_page(console.url, "#/compare")

    page.get_by_role("link", name=re.compile(f"^Sweep {sweep[:8]}: 6 images")).click()

    expect(page.get_by_role("columnheader")).to_have_text(["Rows", "seed 7", "seed 8"])
    expect(page.get_by_role("rowheader")).to_have_text(["trained", "untrained"])
    expect(page.get_by_role("gridcell")).to_have_count(4)
    expect(page.get_by_text("6 of 6 images")).to_be_visible()
    # The labels of the checkpoints say what the adapters would.
    expect(page.get_by_label("Adapter", exact=True)).to_have_count(0)
    page.get_by_label("Columns", exact=True).select_option("multiplier")
    expect(page.get_by_role("columnheader").nth(1)).to_be_visible()
    assert f"sweep={sweep}" in page.url


def test_the_multipliers_are_those_of_the_checkpoints(console, open_page, expect):
    fixed = [{"path": "sks_robot.safetensors", "network_multiplier": 0.3}]
    sweep = console.api.http.post("/v1/sweeps", json=SWEEP | {"loras": fixed}).json()["sweep_id"]
    console.finish_queued()

    page = open_page(console.url, f"#/compare?sweep={sweep}&rows=checkpoint&columns=multiplier")

    expect(page.get_by_role("columnheader")).to_have_text(["Rows", "base model", "× 0.5", "× 1"])


def test_a_running_sweep_shows_what_is_finished_and_can_be_canceled(console, sweep, open_page, expect, axe):
    page = open_page(console.url, f"#/compare?sweep={sweep}")
    expect(page.get_by_text("0 of 6 images")).to_be_visible()
    console.claim()
    assert find_violations(page, axe) == []

    page.get_by_role("button", name="Cancel the sweep").click()
    question = page.get_by_role("dialog", name="Cancel the sweep?")
    expect(question).to_contain_text("6 images will not be rendered.")
    question.get_by_role("button", name="Cancel the sweep").click()

    expect(page.get_by_text("5 canceled")).to_be_visible()
    assert console.api.http.get(f"/v1/sweeps/{sweep}/status").json()["counts"]["canceled"] >= 5


def test_images_that_are_finished_meanwhile_are_fetched_on_demand(console, sweep, open_page, expect):
    page = open_page(console.url, f"#/compare?sweep={sweep}", viewport=PHONE)
    expect(page.get_by_text("0 of 6 images")).to_be_visible()
    console.finish_queued()

    page.get_by_role("button", name="Show what is finished").click()

    expect(page.get_by_role("gridcell")).to_have_count(4)
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]


def test_a_sweep_that_is_gone_is_said_to_be(console, open_page, expect, watch):
    watch.allow("status of 404")
    page = open_page(console.url, "#/compare?sweep=gone")

    expect(page.get_by_text("Sweep not found: gone")).to_be_visible()
