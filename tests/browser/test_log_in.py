"""The key of the API: who gets in, where the key is kept, and where it never is."""

import pytest
from console_pages import log_in, show_view, submit_images

NEEDS_KEY = "This service needs an API key"


@pytest.fixture
def locked(console, watch):
    """A console that wants a key, and that key; the browser writes the API's refusals into its console."""
    watch.allow("status of 401")
    return console, console.add_key()


def test_a_key_opens_the_console_and_goes_into_headers_alone(locked, open_page, watch, expect):
    console, key = locked
    page = open_page(console.url)
    expect(page.get_by_role("heading", name=NEEDS_KEY)).to_be_visible()
    expect(page.get_by_label("API key", exact=True)).to_be_focused()

    log_in(page, key)

    expect(page.get_by_role("navigation", name="Views")).to_be_visible()
    expect(page.get_by_role("heading", name=NEEDS_KEY)).to_be_hidden()
    assert f"Bearer {key}" in {request.headers.get("authorization") for request in watch.requests}
    secret = key.rpartition("_")[2]
    assert not any(secret in request.url for request in watch.requests)
    assert secret not in page.content()
    assert secret not in page.url
    assert page.evaluate("[document.cookie, localStorage.length]") == ["", 0]


def test_a_wrong_key_is_refused_in_words_and_the_right_one_still_works(locked, open_page, expect):
    console, key = locked
    page = open_page(console.url)

    log_in(page, key[:-1] + ("0" if key[-1] != "0" else "1"))
    expect(page.get_by_role("alert")).to_have_text("The API does not know this key. Check that all of it was copied.")
    log_in(page, key)

    expect(page.get_by_role("navigation", name="Views")).to_be_visible()


def test_a_key_lasts_as_long_as_its_tab(locked, open_page, expect):
    console, key = locked
    page = open_page(console.url)
    log_in(page, key)
    expect(page.get_by_role("navigation", name="Views")).to_be_visible()

    page.reload()
    other = page.context.new_page()
    other.goto(console.url)

    expect(page.get_by_role("navigation", name="Views")).to_be_visible()
    expect(other.get_by_role("heading", name=NEEDS_KEY)).to_be_visible()


def test_a_remembered_key_opens_other_tabs_until_somebody_logs_out(locked, open_page, expect):
    console, key = locked
    page = open_page(console.url)
    log_in(page, key, remember=True)
    expect(page.get_by_role("navigation", name="Views")).to_be_visible()
    other = page.context.new_page()
    other.goto(console.url)
    expect(other.get_by_role("navigation", name="Views")).to_be_visible()

    other.get_by_role("button", name="Log out").click()

    expect(other.get_by_role("heading", name=NEEDS_KEY)).to_be_visible()
    page.reload()
    expect(page.get_by_role("heading", name=NEEDS_KEY)).to_be_visible()
    assert page.evaluate("localStorage.length + sessionStorage.length") == 0


def test_a_key_sees_the_views_that_its_roles_allow(locked, open_page, expect):
    console, _ = locked

    reader = open_page(console.url, key=console.add_key(roles=["read"]))
    admin = open_page(console.url, key=console.add_key(roles=["admin"]))

    links = [page.get_by_role("navigation", name="Views").get_by_role("link") for page in (reader, admin)]
    expect(links[0]).to_have_text(["Queue", "Gallery", "Compare", "Adapters"])
    expect(links[1]).to_have_text(["Create", "Queue", "Gallery", "Compare", "Adapters", "Keys and usage"])


@pytest.mark.parametrize("end", ["log out", "revoked key"])
def test_the_next_key_sees_nothing_of_the_one_before(end, locked, open_page, expect):
    console, _ = locked
    ours, theirs = (console.add_key(tenant=tenant) for tenant in ("ours", "theirs"))
    console.api.http.headers["Authorization"] = f"Bearer {ours}"
    submit_images(console.api.http, ["a secret fox"])
    console.finish_queued()
    page = open_page(console.url, "#/gallery")
    log_in(page, ours)
    tile = page.get_by_role("link", name="a secret fox")
    tile.focus()
    tile.press("Space")
    expect(page.get_by_text("1 image selected")).to_be_visible()

    if end == "log out":
        page.get_by_role("button", name="Log out").click()
    else:
        console.api.ledger.api_keys.revoke(ours.split("_")[1])
        show_view(page, "Compare")
    log_in(page, theirs)
    show_view(page, "Gallery")

    expect(page.get_by_role("heading", name="No images yet")).to_be_visible()
    expect(tile).to_have_count(0)
    expect(page.get_by_text("1 image selected")).to_have_count(0)
