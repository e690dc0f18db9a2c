"""The form of the console's first view: what it sends, what it refuses, and what it keeps."""

import base64
import io
import re

import pytest
from console_pages import PHONE, THEMES, HeldCalls, find_violations, submit_images
from PIL import Image

PROMPTS = "Prompts, one on each line"


def type_prompts(page, text):
    page.get_by_label(PROMPTS).fill(text)


def number(page, name):
    return page.get_by_role("spinbutton", name=name, exact=True)


def sent_body(page, act):
    """Do what submits, and return the body that the API accepts."""
    with page.expect_response("**/v1/inference") as answered:
        act()
    assert answered.value.status == 202, answered.value.text()
    return answered.value.request.post_data_json


def render(page):
    return sent_body(page, page.get_by_role("button", name=re.compile("^Render [0-9]")).click)


def make_png(width, height):
    file = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(file, "PNG")
    return file.getvalue()


# Lines of the form, and the prompts that they stand for.
LINES = {
    "a {red|blue} fox": ["a red fox", "a blue fox"],
    "{a|b} {1|2}": ["a 1", "a 2", "b 1", "b 2"],
    "{a|{b|c} d|}": ["a", "b d", "c d", ""],
    # FLUX.2 reads prompts that are JSON.
    '{"scene": "{a|b}", "n": {}}': ['{"scene": "a", "n": {}}', '{"scene": "b", "n": {}}'],
    r"\{a\|b} \\ C:\dir": [r"{a|b} \ C:\dir"],
    r"one\ntwo": ["one\ntwo"],
    "{a|b": ["{a|b"],
    "a} | b": ["a} | b"],
}
EXPAND = """async (line) => {
  const { escapePrompt, expandPrompts } = await import("./console/core/wildcards.js");
  const { count, prompts } = expandPrompts(line);
  if (count !== prompts.length) throw new Error(`${count} counted, ${prompts.length} made`);
  return [prompts, prompts.map((prompt) => expandPrompts(escapePrompt(prompt)).prompts)];
}"""


def test_wildcards_stand_for_prompts_and_any_prompt_can_be_written(console, open_page):
    page = open_page(console.url, "#/adapters")

    found = {line: page.evaluate(EXPAND, line) for line in LINES}

    assert {line: prompts for line, (prompts, _) in found.items()} == LINES
    for prompts, again in found.values():
        assert again == [[prompt] if prompt else [] for prompt in prompts]
    deep = f"{'{' * 500}a|b{'}' * 500}"
    prompts, again = page.evaluate(EXPAND, deep)
    assert again == [[prompt] for prompt in prompts]


def test_lines_and_wildcards_become_images_with_the_seeds_of_the_api(console, open_page, expect):
    page = open_page(console.url)

    type_prompts(page, "[trigger] a {red|blue} {fox|owl}\n\na tree in the snow")
    page.get_by_label("Trigger word").fill("sks")
    page.get_by_text("2 lines stand for 5 prompts").click()
    expect(page.locator(".variants li")).to_have_count(5)
    body = render(page)
    console.finish_queued()

    [job] = console.api.http.get("/v1/requests").json()["data"]
    images = console.api.http.get(f"/v1/requests/{job['request_id']}/result").json()["outputs"]["images"]
    assert [image["prompt"] for image in images] == [
        "sks a red fox",
        "sks a red owl",
        "sks a blue fox",
        "sks a blue owl",
        "a tree in the snow",
    ]
    assert [image["seed"] for image in images] == [42, 43, 44, 45, 46]
    # The API's own rules: what nobody changed is not sent.
    assert body["prompts"][4] == {"prompt": "a tree in the snow"}


def test_seeds_follow_the_rule_that_was_chosen(console, open_page):
    page = open_page(console.url)
    type_prompts(page, "a fox\nan owl")
    number(page, "Images each").fill("2")

    for rule, seed, seeds in (
        ("+1 each", "7", [7, 8, 9, 10]),
        ("same for all prompts", "7", [7, 8, 7, 8]),
        ("same for all prompts", "", [42, 43, 42, 43]),
        ("random", "", [-1, -1, -1, -1]),
    ):
        number(page, "Seed").fill(seed)
        page.get_by_label("Seeds of the images").select_option(rule)
        prompts = render(page)["prompts"]

        assert [each["prompt"] for each in prompts] == ["a fox", "a fox", "an owl", "an owl"]
        assert [each["seed"] for each in prompts] == seeds


def test_a_value_that_the_servers_schema_refuses_is_named_while_it_is_typed(console, open_page, expect):
    page = open_page(console.url)
    type_prompts(page, "a fox")
    button = page.get_by_role("button", name=re.compile("^Render 1 image"))

    for field, value, problem in (
        ("Width", "50", "Must be at least 64."),
        ("Height", "5000", "Must be at most 4096."),
        ("Steps", "2.5", "Must be a whole number."),
        ("Guidance", "21", "Must be at most 20."),
        ("Seed", "-2", "Must be at least -1."),
    ):
        control = number(page, field)
        control.fill(value)

        expect(control).to_have_accessible_description(problem)
        expect(control).to_have_attribute("aria-invalid", "true")
        expect(button).to_be_disabled()
        control.fill("")
        expect(control).not_to_have_attribute("aria-invalid", "true")
    expect(button).to_be_enabled()


def test_without_the_servers_schema_its_answer_stands_at_the_field(console, open_page, watch, expect):
    watch.allow("status of (404|422)")
    page = open_page(console.url, "#/adapters")
    page.route("**/openapi.json", lambda route: route.fulfill(status=404, json={"title": "Not Found"}))
    page.get_by_role("link", name="Create").click()
    type_prompts(page, "a fox")
    number(page, "Width").fill("50")

    page.get_by_role("button", name=re.compile("^Render 1 image")).click()

    expect(number(page, "Width")).to_have_accessible_description(re.compile("greater than or equal to 64"))
    expect(number(page, "Width")).to_be_focused()
    number(page, "Width").fill("64")
    expect(number(page, "Width")).to_have_accessible_description("")
    render(page)


def test_more_images_than_a_job_may_have_are_refused_before_they_are_made(console, open_page, expect):
    page = open_page(console.url)
    most = console.api.http.get("/v1/models").json()["limits"]["max_prompts"]

    type_prompts(page, " ".join(["{a|b|c|d|e|f|g|h|i|j}"] * 8))

    said = f"100,000,000 images are too many: a job has at most {most:,}."
    expect(page.get_by_label(PROMPTS)).to_have_accessible_description(re.compile(re.escape(said)))


def test_a_job_whose_answer_was_lost_is_not_rendered_twice(console, open_page, watch, expect):
    watch.allow("ERR_FAILED|failed: POST .*/v1/inference")
    page = open_page(console.url)
    type_prompts(page, "a fox")

    def lose_answer(route):
        route.fetch()
        route.abort()

    page.route("**/v1/inference", lose_answer, times=1)
    page.get_by_role("button", name=re.compile("^Render 1 image")).click()
    expect(page.get_by_role("alert").filter(has_text="The API does not answer")).to_be_visible()
    expect(page.get_by_role("button", name="Send 1 image again")).to_be_enabled()
    # Not even a reload loses the key.
    page.reload()
    body = render(page)

    assert body["prompts"] == [{"prompt": "a fox"}]
    assert len(console.api.http.get("/v1/requests").json()["data"]) == 1
    render(page)
    assert len(console.api.http.get("/v1/requests").json()["data"]) == 2


def test_the_draft_outlives_a_reload_and_belongs_to_its_tenant(console, open_page, watch, expect):
    watch.allow("status of 401")
    first, second = (console.add_key(tenant=tenant) for tenant in ("studio", "lab"))
    page = open_page(console.url)
    log_in_as(page, first)
    type_prompts(page, "a fox")
    number(page, "Steps").fill("12")

    page.reload()
    expect(page.get_by_label(PROMPTS)).to_have_value("a fox")
    expect(number(page, "Steps")).to_have_value("12")
    page.get_by_role("button", name="Log out").click()
    log_in_as(page, second)

    expect(page.get_by_label(PROMPTS)).to_have_value("")


def log_in_as(page, key):
    page.get_by_label("API key", exact=True).fill(key)
    page.get_by_role("button", name="Log in").click()
    page.get_by_label(PROMPTS).wait_for()


def test_a_cleared_form_comes_back(console, open_page, expect):
    page = open_page(console.url)
    type_prompts(page, "a fox")

    page.get_by_role("button", name="Clear").click()
    expect(page.get_by_label(PROMPTS)).to_have_value("")
    page.get_by_role("button", name="Undo").click()

    expect(page.get_by_label(PROMPTS)).to_have_value("a fox")


def test_an_adapter_is_found_by_the_keyboard_and_described_by_its_file(console, open_page, expect):
    page = open_page(console.url)
    type_prompts(page, "a fox")

    page.get_by_role("button", name="Add an adapter").click()
    search = page.get_by_role("searchbox")
    expect(search).to_be_focused()
    search.fill("eo")
    expect(page.locator(".picker-list li")).to_have_count(1)
    page.keyboard.press("ArrowDown")
    expect(page.get_by_role("button", name="neon")).to_be_focused()
    page.keyboard.press("Enter")

    row = page.get_by_role("listitem", name="neon")
    expect(row).to_contain_text("lokr · 22 layers")
    slider = row.get_by_role("slider")
    expect(slider).to_have_attribute("min", "-2")
    expect(slider).to_have_attribute("max", "2")
    slider.press("End")
    expect(row.get_by_role("spinbutton")).to_have_value("2")
    row.get_by_role("spinbutton").fill("-0.5")
    assert render(page)["loras"] == [{"path": "neon.safetensors", "network_multiplier": -0.5}]


def test_an_adapter_that_jobs_cannot_use_says_why_in_the_words_of_the_api(console, open_page, watch, expect):
    watch.allow("status of 4")
    page = open_page(console.url)
    page.get_by_role("button", name="Add an adapter").click()

    page.get_by_role("searchbox").fill("https://127.0.0.1/robot.safetensors")
    page.get_by_role("button", name="Use this address").click()

    answer = console.api.http.get("/v1/adapters", params={"path": "https://127.0.0.1/robot.safetensors"})
    expect(page.get_by_role("listitem", name="robot")).to_contain_text(answer.json()["detail"])


@pytest.mark.parametrize("way", ["choose", "paste", "drop"])
def test_a_reference_image_is_uploaded_and_named_in_the_request(way, console, open_page, expect):
    page = open_page(console.url)
    type_prompts(page, "make it snow")
    png = make_png(96, 64)

    if way == "choose":
        page.set_input_files("input[type=file]", {"name": "photo.png", "mimeType": "image/png", "buffer": png})
    else:
        page.evaluate(GIVE_FILE, [way, base64.b64encode(png).decode()])

    reference = page.locator(".reference").filter(has_text="photo.png")
    expect(reference).to_contain_text("96 x 64")
    expect(reference.locator("img")).to_have_attribute("src", re.compile("^data:image/webp"))
    path = render(page)["prompts"][0]["ctrl_img"]
    assert console.api.http.get(f"/v1/uploads/{path.removeprefix('upload:')}").json()["width"] == 96
    page.reload()
    expect(reference).to_contain_text("96 x 64")


GIVE_FILE = """([way, text]) => {
  const bytes = Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
  const data = new DataTransfer();
  data.items.add(new File([bytes], "photo.png", { type: "image/png" }));
  const options = { bubbles: true, cancelable: true };
  document.body.dispatchEvent(way === "paste"
    ? new ClipboardEvent("paste", { ...options, clipboardData: data })
    : new DragEvent("drop", { ...options, dataTransfer: data }));
}"""


def test_an_image_that_no_prompt_can_use_is_refused_in_the_words_of_the_api(console, open_page, watch, expect):
    watch.allow("status of 422")
    page = open_page(console.url)
    small = make_png(32, 32)

    page.set_input_files("input[type=file]", {"name": "icon.png", "mimeType": "image/png", "buffer": small})

    answer = console.api.http.post("/v1/uploads", content=small, headers={"content-type": "image/png"})
    expect(page.locator(".reference")).to_contain_text(answer.json()["detail"])
    page.get_by_role("button", name="Remove icon.png").click()
    expect(page.locator(".reference")).to_have_count(0)


def test_what_will_be_sent_is_shown_without_the_key(console, open_page, watch, expect):
    watch.allow("status of 401")
    key = console.add_key()
    page = open_page(console.url, key=key)
    type_prompts(page, "it's a fox")

    page.get_by_text("What will be sent").click()
    expect(page.locator(".outgoing pre")).to_contain_text('"prompt": "it\'s a fox"')
    page.get_by_role("button", name="curl").click()

    shown = page.locator(".outgoing pre").inner_text()
    assert shown.startswith(f"curl -X POST '{console.url}/v1/inference'")
    assert "Bearer $FLUX2_API_KEY" in shown
    assert key.rpartition("_")[2] not in page.content()


def test_an_image_fills_the_form_with_all_that_made_it(console, open_page, expect):
    prompt = {"prompt": "a {real} brace", "seed": 7, "sample_steps": 9, "width": 192, "height": 128}
    job = submit_images(console.api.http, [prompt], lora="neon.safetensors")
    console.finish_queued()

    page = open_page(console.url, f"#/create?from={job}/0")

    expect(page.get_by_label(PROMPTS)).to_have_value("a {real} brace")
    expect(page.get_by_role("listitem", name="neon")).to_be_visible()
    expect(page).to_have_url(re.compile("#/create$"))
    body = render(page)
    assert body["prompts"] == [prompt | {"guidance_scale": 4}]
    assert body["loras"] == [{"path": "neon.safetensors", "network_multiplier": 1}]
    assert body["adapter_mode"] == "merged"


def test_the_keyboard_alone_sends_a_job(console, open_page, expect):
    page = open_page(console.url)
    page.get_by_label(PROMPTS).wait_for()

    page.keyboard.press("n")
    expect(page.get_by_label(PROMPTS)).to_be_focused()
    page.keyboard.type("a fox")
    body = sent_body(page, lambda: page.keyboard.press("Control+Enter"))

    assert body["prompts"] == [{"prompt": "a fox"}]
    expect(page.get_by_role("status").filter(has_text="Accepted: 1 image.")).to_be_visible()


def test_a_job_that_is_sent_before_the_models_are_known_waits_for_them(console, open_page, expect):
    page = open_page(console.url)
    held = HeldCalls(page, "**/v1/models")
    page.reload()
    page.get_by_label(PROMPTS).fill("a fox")
    page.keyboard.press("Control+Enter")
    expect(page.get_by_text("The job is sent as soon as it is here.")).to_be_visible()
    # A change withdraws it.
    page.get_by_label(PROMPTS).fill("a hare")
    expect(page.get_by_text("The job is sent as soon as it is here.")).to_be_hidden()
    page.keyboard.press("Control+Enter")

    body = sent_body(page, held.send)

    assert body["prompts"] == [{"prompt": "a hare"}]
    assert len(console.api.http.get("/v1/requests").json()["data"]) == 1


def test_a_report_that_comes_late_changes_nothing_else(console, open_page, expect):
    page = open_page(console.url, "#/adapters")
    held = HeldCalls(page, "**/v1/adapters?path=*")
    with page.expect_request(lambda request: "/v1/adapters?path=" in request.url and "model=" in request.url):
        page.goto(f"{console.url}/#/create?prompt=a+fox&lora=neon.safetensors")
    row = page.get_by_role("listitem", name="neon")
    row.get_by_role("spinbutton").fill("0.5")

    call = held.take()
    answer = call.fetch()
    call.fulfill(response=answer, json=answer.json() | {"must_ignore": ["text_encoder"]})

    expect(row).to_contain_text("Its text encoder part is left out.")
    expect(row.get_by_role("spinbutton")).to_have_value("0.5")


def test_the_form_is_a_sheet_on_a_phone(console, open_page, expect):
    page = open_page(console.url, viewport=PHONE)

    page.get_by_role("button", name="New images").click()
    sheet = page.get_by_role("dialog", name="New images")
    type_prompts(page, "a fox")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    render(page)

    expect(sheet).to_be_hidden()
    page.get_by_role("button", name="New images").click()
    expect(page.get_by_label(PROMPTS)).to_have_value("a fox")


def test_the_sheet_shows_all_lines_of_the_draft(console, open_page, expect):
    page = open_page(console.url, viewport=PHONE)
    page.get_by_role("button", name="New images").click()
    type_prompts(page, "one\ntwo\nthree\nfour\nfive")
    height = page.get_by_label(PROMPTS).bounding_box()["height"]

    page.get_by_role("button", name="Close").click()
    page.get_by_role("button", name="New images").click()

    expect(page.get_by_label(PROMPTS)).to_have_css("height", f"{height:g}px")


@pytest.mark.parametrize("theme", THEMES)
def test_a_form_with_everything_in_it_has_no_serious_fault(theme, console, open_page, expect, axe):
    page = open_page(console.url, "#/create?prompt=a+fox&lora=neon.safetensors@0.8&width=50", color_scheme=theme)
    expect(number(page, "Width")).to_have_attribute("aria-invalid", "true")
    type_prompts(page, "[trigger] a {red|blue} fox")
    page.set_input_files("input[type=file]", {"name": "a.png", "mimeType": "image/png", "buffer": make_png(96, 64)})
    expect(page.locator(".reference")).to_contain_text("96 x 64")
    for closed in ("1 line stand", "Engine, file format", "What will be sent"):
        page.get_by_text(closed).click()

    form = find_violations(page, axe)
    page.get_by_role("button", name="Add an adapter").click()
    expect(page.locator(".picker-list li").first).to_be_visible()
    dialog = find_violations(page, axe)

    assert (form, dialog) == ([], [])


def test_a_reference_that_was_removed_while_it_was_uploaded_stays_away(console, open_page, expect):
    page = open_page(console.url)
    held = HeldCalls(page, "**/v1/uploads", times=1)
    photo = {"name": "photo.png", "mimeType": "image/png", "buffer": make_png(96, 64)}

    page.set_input_files("input[type=file]", photo)
    page.get_by_role("button", name="Remove photo.png").click()
    with page.expect_response("**/v1/uploads"):
        held.send()
    # By the time that another one is there, the first would be.
    page.set_input_files("input[type=file]", photo | {"name": "other.png"})

    expect(page.locator(".reference").filter(has_text="96 x 64")).to_have_count(1)
    expect(page.locator(".reference-name")).to_have_text(["other.png"])


def test_times_are_rounded_before_they_are_taken_apart(console, open_page):
    page = open_page(console.url)

    texts = page.evaluate(
        "async (all) => all.map((await import('/console/core/format.js')).formatSeconds)",
        [0.2, 59.4, 59.7, 119.6, 3599.8, 7260],
    )

    assert texts == ["1 s", "59 s", "1 min 0 s", "2 min 0 s", "1 h 0 min", "2 h 1 min"]
