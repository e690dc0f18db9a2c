"""The frame of the page: its views by the keyboard, its addresses and its policy."""

import pytest
from console_pages import PHONE

VIEWS = {"c": "Create", "q": "Queue", "g": "Gallery", "m": "Compare", "a": "Adapters", "k": "Keys and usage"}


def test_the_keyboard_alone_reaches_every_view(console, open_page, expect):
    page = open_page(console.url)
    page.get_by_role("navigation", name="Views").wait_for()

    for key, title in VIEWS.items():
        page.keyboard.press("g")
        page.keyboard.press(key)

        expect(page).to_have_title(f"{title} · flux2")
        expect(page.locator("nav a[aria-current=page]")).to_have_text(title)
    page.go_back()
    expect(page).to_have_title("Adapters · flux2")


def test_a_key_has_a_second_from_the_last_g_on(console, open_page, expect):
    page = open_page(console.url)
    page.get_by_role("navigation", name="Views").wait_for()
    page.clock.install()
    page.clock.pause_at(page.evaluate("Date.now()") / 1000 + 1)

    page.keyboard.press("g")
    page.keyboard.press("q")
    expect(page.locator("nav a[aria-current=page]")).to_have_text("Queue")
    page.clock.run_for(900)
    page.keyboard.press("g")
    page.clock.run_for(200)
    page.keyboard.press("a")
    expect(page.locator("nav a[aria-current=page]")).to_have_text("Adapters")
    page.keyboard.press("g")
    page.clock.run_for(1100)
    page.keyboard.press("q")

    page.clock.resume()
    expect(page).to_have_title("Adapters · flux2")


def test_the_first_tab_stop_skips_the_navigation_and_every_stop_is_visible(console, open_page, expect):
    page = open_page(console.url, "#/adapters")
    page.locator("main#main:not([aria-busy])").wait_for()

    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    for _ in range(3):
        page.keyboard.press("Tab")
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid", page.evaluate("document.activeElement.outerHTML")


def test_the_policy_stops_scripts_and_styles_that_are_not_the_pages_own(console, open_page, watch):
    watch.allow("violates the following Content Security Policy")
    page = open_page(console.url)
    page.get_by_role("navigation", name="Views").wait_for()

    page.evaluate(
        """() => {
          window.ran = [];
          const script = document.createElement("script");
          script.textContent = "window.ran.push('script')";
          document.body.append(script);
          const image = document.createElement("img");
          image.setAttribute("onerror", "window.ran.push('handler')");
          image.src = "data:image/png;base64,";
          document.body.append(image);
          document.body.insertAdjacentHTML("beforeend", "<p id=styled style='color: rgb(1, 2, 3)'>text</p>");
        }"""
    )
    page.wait_for_timeout(50)

    assert page.evaluate("window.ran") == []
    assert page.evaluate("getComputedStyle(document.getElementById('styled')).color") != "rgb(1, 2, 3)"


@pytest.mark.parametrize("fragment", ["#/nothing", "#/gallery/%", "#/queue?x=<b>"])
def test_an_address_of_no_view_shows_one(fragment, console, open_page, expect):
    page = open_page(console.url, fragment)

    expect(page.locator("nav a[aria-current=page]")).to_have_count(1)
    expect(page.locator("main#main:not([aria-busy])")).to_be_visible()


def test_on_a_phone_the_navigation_shows_the_present_view(console, open_page, expect):
    page = open_page(console.url, "#/keys", viewport=PHONE)

    expect(page.get_by_role("link", name="Keys and usage")).to_be_in_viewport()
