"""The view of adapter files: find, inspect, upload, use and delete them."""

import base64
import re

import pytest
from console_pages import PHONE, HeldCalls, show_view, submit_images


@pytest.fixture
def shown(console, open_page):
    """The view of a console with the demonstration adapters."""
    page = open_page(console.url, "#/adapters")
    page.get_by_role("link", name="neon").wait_for()
    return page


def drop(page, name, data):
    """Drop a file on the list, as from the desktop."""
    transfer = page.evaluate_handle(
        """([name, text]) => {
          const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
          const transfer = new DataTransfer();
          transfer.items.add(new File([bytes], name));
          return transfer;
        }""",
        [name, base64.b64encode(data).decode()],
    )
    page.dispatch_event(".adapters-view", "drop", {"dataTransfer": transfer})


def test_a_search_finds_files_and_its_address_can_be_shared(shown, expect):
    files = shown.get_by_role("list", name="Adapter files").get_by_role("link")
    expect(files).to_have_count(4)

    shown.get_by_label("Search").fill("NEO")

    expect(files).to_have_count(1)
    shown.reload()
    expect(shown.get_by_label("Search")).to_have_value("NEO")
    expect(files).to_have_count(1)
    shown.get_by_label("Search").fill("nothing")
    expect(shown.get_by_text("No file has this in its path.")).to_be_visible()


def test_the_report_of_a_file_says_what_it_is_and_puts_it_into_the_form(shown, expect):
    shown.get_by_role("link", name="sks_robot").click()
    card = shown.get_by_role("article", name="sks_robot")

    expect(card.get_by_text("Jobs can use it")).to_be_visible()
    expect(card.locator(".facts")).to_contain_text("lora")
    expect(card.locator("figcaption")).to_contain_text("in double blocks")
    card.get_by_role("button", name="Use in Create").click()
    expect(shown).to_have_url(re.compile("#/create"))
    expect(shown.get_by_role("listitem", name="sks_robot")).to_be_visible()


def test_the_report_shows_what_was_made_with_the_file(console, open_page, expect):
    submit_images(console.api.http, ["a red disc", "a blue disc"], lora="neon.safetensors")
    submit_images(console.api.http, ["a disc of the base model"])
    console.finish_queued()
    page = open_page(console.url, "#/adapters/neon.safetensors")

    made = page.get_by_role("region", name="Made with it")
    expect(made.get_by_role("img")).to_have_count(2)
    expect(made.get_by_role("img", name="a red disc")).to_have_js_property("complete", True)
    expect(made.get_by_role("link", name="All of them in the gallery")).to_have_attribute(
        "href", "#/gallery?adapter=neon.safetensors"
    )


def test_a_file_that_is_dropped_is_stored_and_can_be_deleted(shown, adapter_root, expect):
    drop(shown, "my robot (v2).safetensors", (adapter_root / "neon.safetensors").read_bytes())

    card = shown.get_by_role("article", name="my-robot-v2-")
    expect(card.get_by_text("Jobs can use it")).to_be_visible()
    stored = shown.get_by_role("list", name="Adapter files").get_by_role("link", name="my-robot-v2-")
    expect(stored).to_be_visible()
    card.get_by_role("button", name="Delete").click()
    shown.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(stored).to_have_count(0)
    expect(card).to_have_count(0)


def test_a_file_that_no_job_could_use_is_refused_in_the_words_of_the_api(console, shown, watch, expect):
    watch.allow("status of 422")

    drop(shown, "notes.safetensors", b"\x08\x00\x00\x00\x00\x00\x00\x00notjson!")

    answer = console.api.http.put("/v1/adapters/notes", content=b"\x08\x00\x00\x00\x00\x00\x00\x00notjson!")
    assert answer.status_code == 422
    expect(shown.get_by_role("alert")).to_have_text(answer.json()["detail"])


def test_a_key_that_only_reads_sees_reports_and_changes_nothing(console, open_page, expect):
    page = open_page(console.url, "#/adapters/neon.safetensors", key=console.add_key(roles=["read"]))

    expect(page.get_by_role("article", name="neon").get_by_text("Jobs can use it")).to_be_visible()
    expect(page.get_by_role("button", name="Use in Create")).to_have_count(0)
    expect(page.get_by_role("button", name="Upload a file")).to_have_count(0)


def test_on_a_phone_the_report_takes_the_place_of_the_list(console, open_page, expect):
    page = open_page(console.url, "#/adapters", viewport=PHONE)
    page.get_by_role("link", name="neon").click()

    expect(page.get_by_role("article", name="neon")).to_be_visible()
    expect(page.get_by_label("Search")).to_be_hidden()
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    page.get_by_role("button", name="Close the report").click()
    expect(page.get_by_label("Search")).to_be_visible()


def test_an_upload_that_ends_takes_nobody_away_from_another_view(shown, adapter_root, expect):
    held = HeldCalls(shown, "**/v1/adapters/late")
    drop(shown, "late.safetensors", (adapter_root / "neon.safetensors").read_bytes())
    expect(shown.get_by_text("late.safetensors")).to_be_visible()
    show_view(shown, "Queue")

    held.send()

    expect(shown.get_by_text("late.safetensors is stored.")).to_be_visible()
    expect(shown).to_have_title("Queue · flux2")


def test_an_upload_that_ends_leaves_the_search_as_it_is(shown, adapter_root, expect):
    held = HeldCalls(shown, "**/v1/adapters/late")
    drop(shown, "late.safetensors", (adapter_root / "neon.safetensors").read_bytes())
    expect(shown.get_by_text("late.safetensors")).to_be_visible()
    shown.get_by_label("Search").fill("robot")

    held.send()

    expect(shown.get_by_role("article", name="late")).to_be_visible()
    expect(shown.get_by_label("Search")).to_have_value("robot")
