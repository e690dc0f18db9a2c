"""The view of API keys and of what they used."""

import csv
import re

import pytest
from console_pages import PHONE, submit_images


@pytest.fixture
def admin_page(console, open_page):
    """The view, for a key with the role admin."""
    return open_page(console.url, "#/keys", key=console.add_key(tenant="operators", roles=["admin"]))


def test_a_key_is_made_shown_once_and_revoked(console, admin_page, expect):
    page = admin_page
    page.get_by_role("button", name="Make a key").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Name: who or what will use it").fill("nightly renders")
    dialog.get_by_role("textbox", name="Tenant").fill("studio")
    dialog.get_by_label("Days until it expires").fill("30")
    dialog.get_by_text("Limits", exact=True).click()
    dialog.get_by_label("Steps of an image").fill("30")
    dialog.get_by_role("button", name="Make the key").click()

    key = page.locator(".secret").inner_text()
    row = page.get_by_role("row", name="nightly renders")
    expect(row).to_contain_text("30 steps")
    expect(row).to_contain_text("studio")
    caller = console.api.http.get("/v1/caller", headers={"Authorization": f"Bearer {key}"})
    assert caller.json()["tenant"] == "studio"
    page.get_by_role("button", name="I have kept it").click()
    expect(page.locator(".secret")).to_have_count(0)
    assert key not in page.content()

    page.get_by_role("button", name="Revoke nightly renders").click()
    # Keys of the page wait for the answer.
    page.keyboard.press("g")
    page.keyboard.press("q")
    page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
    expect(row).to_contain_text("revoked")
    assert console.api.http.get("/v1/caller", headers={"Authorization": f"Bearer {key}"}).status_code == 401


def test_a_field_that_the_api_refuses_says_so_itself(admin_page, watch, expect):
    watch.allow("status of 422")
    page = admin_page
    page.get_by_role("button", name="Make a key").click()
    page.get_by_label("Name: who or what will use it").fill("alice")
    tenant = page.get_by_role("textbox", name="Tenant")
    tenant.fill("../etc")
    page.get_by_role("button", name="Make the key").click()

    expect(tenant).to_have_attribute("aria-invalid", "true")
    expect(page.locator(".key-form .field-error")).to_contain_text("pattern")


def test_after_the_first_key_this_tab_goes_on_and_others_need_it(console, open_page, watch, expect):
    watch.allow("status of 401")
    page = open_page(console.url, "#/keys")
    expect(page.get_by_text("There are no keys yet")).to_be_visible()

    page.get_by_role("button", name="Make a key").click()
    page.get_by_label("Name: who or what will use it").fill("operator")
    page.get_by_role("button", name="Make the key").click()

    expect(page.get_by_text("From now on this API needs a key.")).to_be_visible()
    expect(page.get_by_role("row", name="operator")).to_contain_text("in use here")
    expect(page.get_by_text("There are no keys yet")).to_have_count(0)
    key = page.locator(".secret").inner_text()
    assert page.evaluate("sessionStorage.getItem('flux2.key')") == key
    other = open_page(console.url)
    expect(other.get_by_role("heading", name="This service needs an API key")).to_be_visible()


def test_usage_is_a_table_a_chart_and_a_file(console, open_page, expect, tmp_path):
    submit_images(console.api.http, ["a disc", "two discs"], lora="neon.safetensors")
    submit_images(console.api.http, ["a disc"])
    console.finish_queued()
    page = open_page(console.url, "#/keys?by=adapter")

    usage = page.get_by_role("region", name="Usage")
    expect(usage.get_by_role("row", name="neon.safetensors")).to_contain_text("2")
    expect(usage.get_by_role("row", name="base")).to_contain_text("1")
    expect(page.locator(".chart rect")).to_have_count(2)
    page.get_by_label("model", exact=True).check()
    expect(page).to_have_url(re.compile("by=model%2Cadapter"))
    expect(usage.get_by_role("columnheader").first).to_have_text("model")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download as CSV").click()
    download.value.save_as(tmp_path / "usage.csv")
    rows = list(csv.DictReader((tmp_path / "usage.csv").read_text().splitlines()))
    assert [(row["adapter"], row["images"]) for row in rows] == [("base", "1"), ("neon.safetensors", "2")]
    assert re.fullmatch(r"usage-\d{4}-\d\d-\d\d-\d{4}-\d\d-\d\d\.csv", download.value.suggested_filename)


def test_tables_scroll_inside_of_a_phones_page(console, open_page):
    page = open_page(console.url, "#/keys", key=console.add_key(roles=["admin"]), viewport=PHONE)
    page.get_by_role("region", name="API keys").wait_for()

    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_a_text_that_is_selected_past_the_edge_closes_no_dialog(admin_page, expect):
    page = admin_page
    page.get_by_role("button", name="Make a key").click()
    name = page.get_by_label("Name: who or what will use it")
    name.fill("nightly renders")
    box = name.bounding_box()

    page.mouse.move(box["x"] + 50, box["y"] + 10)
    page.mouse.down()
    page.mouse.move(5, box["y"] + 10)
    page.mouse.up()

    expect(name).to_have_value("nightly renders")
    page.mouse.click(5, box["y"])
    expect(page.get_by_role("dialog")).to_have_count(0)
