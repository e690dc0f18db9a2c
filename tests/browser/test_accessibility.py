"""Every view, in both themes and on a phone, as axe-core sees it."""

import pytest
from console_pages import DESKTOP, PHONE, THEMES, find_violations, show_view, submit_images

VIEWS = ("Create", "Queue", "Gallery", "Compare", "Adapters", "Keys and usage")


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("theme", THEMES)
def test_no_view_has_a_serious_fault(theme, viewport, console, open_page, axe):
    submit_images(console.api.http, ["a red disc", "a blue disc"], lora="neon.safetensors")
    console.finish_queued()
    submit_images(console.api.http, ["a disc that waits"])
    page = open_page(console.url, color_scheme=theme, viewport=viewport)

    found = {}
    for title in VIEWS:
        show_view(page, title)
        found[title] = find_violations(page, axe)

    assert found == {title: [] for title in VIEWS}


@pytest.mark.parametrize("theme", THEMES)
def test_the_log_in_has_no_serious_fault(theme, console, open_page, watch, axe):
    watch.allow("status of 401")
    console.add_key()
    page = open_page(console.url, color_scheme=theme)
    page.get_by_label("API key", exact=True).wait_for()

    assert find_violations(page, axe) == []
