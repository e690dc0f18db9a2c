"""The page shows what happens without being reloaded, and says when it cannot."""

import pytest
from console_pages import submit_images

from api.events import streams


@pytest.fixture
def slot(console, slot_report):
    """A live slot; without one, the page says only that no worker is connected."""
    console.api.ledger.workers.beat("gpu-0", slot_report())


def test_two_tabs_show_a_job_when_it_comes_and_when_it_ends(console, slot, open_page, expect):
    page = open_page(console.url)
    other = page.context.new_page()
    other.goto(console.url)
    for tab in (page, other):
        expect(tab.locator(".service")).to_contain_text("1 slot · 0 queued")

    submit_images(console.api.http, ["a cat", "a dog"])
    for tab in (page, other):
        expect(tab.locator(".service")).to_contain_text("1 slot · 2 queued")
    console.finish_queued()

    for tab in (page, other):
        expect(tab.locator(".service")).to_contain_text("1 slot · 0 queued")


def test_the_planned_end_of_a_stream_alarms_nobody(console, slot, open_page, expect, watch, monkeypatch):
    # Longer than the first look at a busy Redis takes.
    monkeypatch.setattr(streams, "_LONGEST_S", 1.5)
    page = open_page(console.url)
    expect(page.locator(".service")).to_contain_text("1 slot")
    page.evaluate(
        """() => {
          window.shown = [];
          new MutationObserver(() => window.shown.push(document.querySelector(".service").textContent))
            .observe(document.querySelector("header"), { subtree: true, childList: true, characterData: true });
        }"""
    )

    for _ in range(2):
        with page.expect_response("**/v1/events*") as answer:
            pass
        assert "last-event-id" in answer.value.request.headers

    submit_images(console.api.http, ["a cat"])
    expect(page.locator(".service")).to_contain_text("1 queued")
    shown = page.evaluate("window.shown")
    assert any("1 queued" in text for text in shown)
    assert not any("Reconnecting" in text for text in shown)


def test_a_restart_of_the_api_is_shown_and_the_page_goes_on(console, slot, open_page, expect, watch):
    watch.allow("ERR_CONNECTION_REFUSED|ERR_INCOMPLETE_CHUNKED_ENCODING|ERR_EMPTY_RESPONSE|ERR_CONNECTION_RESET")
    page = open_page(console.url)
    expect(page.locator(".service")).to_contain_text("1 slot · 0 queued")

    console.stop()
    expect(page.locator(".service")).to_have_text("Reconnecting. Nothing is lost.")
    console.start()
    submit_images(console.api.http, ["a cat"])

    expect(page.locator(".service")).to_contain_text("1 slot · 1 queued")
