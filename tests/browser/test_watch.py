"""Jobs in the console while they run: in the first view and in the queue."""

import re

from console_pages import HeldCalls, show_view, submit_images

from shared.job import ItemError, Progress

PROMPTS = "Prompts, one on each line"
# A second on a simulated slot.
LONG = {"width": 1024, "height": 1024, "sample_steps": 50}


def create(page, prompts, **numbers):
    page.get_by_label(PROMPTS).fill(prompts)
    for name, value in numbers.items():
        page.get_by_role("spinbutton", name=name, exact=True).fill(str(value))
    page.get_by_role("button", name=re.compile("^Render [0-9]")).click()


def boxes(page):
    return page.locator(".tile-box").evaluate_all(
        "all => all.map((each) => JSON.stringify(each.getBoundingClientRect()))"
    )


def test_each_image_has_its_place_from_the_start_and_its_picture_in_the_end(simulated, open_page, expect):
    page = open_page(simulated.url, key=simulated.key)

    create(page, "a {red|blue|green} disc", Width=1152, Height=896, Steps=100)
    expect(page.locator(".tile.is-running progress").first).to_be_visible()
    places = boxes(page)
    expect(page.locator(".tile-image.is-loaded")).to_have_count(3)

    assert len(places) == 3
    assert boxes(page) == places
    sizes = page.locator(".tile-image").evaluate_all("all => all.map((each) => each.naturalWidth > 0)")
    assert sizes == [True] * 3
    expect(page.locator(".tile-seed")).to_have_text(["42", "43", "44"])
    expect(page.get_by_role("status").filter(has_text="Job finished: 3 images.")).to_be_visible()


def test_a_reload_in_mid_run_shows_what_runs_and_a_cancel_stops_it(simulated, open_page, expect):
    page = open_page(simulated.url, key=simulated.key)
    # A minute, if nothing stops it.
    create(page, "\n".join(str(number) for number in range(1, 41)), Width=1024, Height=1024, Steps=150)
    expect(page.locator(".tile.is-running").first).to_be_visible()

    page.reload()
    expect(page.locator(".tile.is-running").first).to_be_visible()
    page.get_by_role("button", name="Cancel the job: 1").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel the job").click()

    expect(page.get_by_role("heading", name="Just finished")).to_be_visible()
    expect(page.locator(".tile.is-canceled").first).to_be_visible()
    [job] = simulated.http.get("/v1/requests").json()["data"]
    assert job["status"] == "canceled"


def test_a_failed_image_says_why_and_is_rendered_again_as_it_was(console, open_page, expect):
    page = open_page(console.url)
    create(page, "a fox\nan owl", Steps=4)
    expect(page.locator(".next-up")).to_contain_text("2 images in 1 job")
    claims = [console.claim() for _ in range(2)]
    message = "64x64 does not fit"
    console.api.ledger.commit(claims[1], ItemError(code="out_of_memory", message=message, retryable=False))

    failed = page.get_by_role("article", name="an owl. Failed")
    expect(failed).to_contain_text(message)
    with page.expect_response("**/v1/inference") as answered:
        failed.get_by_role("button", name="Retry").click()

    assert answered.value.request.post_data_json["prompts"] == [{"prompt": "an owl", "sample_steps": 4, "seed": 43}]
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    failed.get_by_role("button", name="Copy error").click()
    expect(page.get_by_role("status").filter(has_text="The error copied.")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == message


def test_the_queue_holds_still_under_the_pointer(console, open_page, expect):
    submit_images(console.api.http, ["the first"])
    page = open_page(console.url, "#/queue")
    first = page.get_by_role("listitem").filter(has_text="the first")
    first.hover()
    place = first.bounding_box()

    submit_images(console.api.http, ["the second"])
    expect(page.get_by_role("button", name="1 new job")).to_be_visible()
    assert first.bounding_box() == place
    page.mouse.move(640, 20)

    expect(page.locator(".job-prompt")).to_have_text(["the second", "the first"])


def test_a_list_that_was_empty_holds_still_too(console, open_page, expect):
    page = open_page(console.url, "#/queue")
    expect(page.get_by_role("heading", name="Nothing waits or runs")).to_be_visible()
    submit_images(console.api.http, ["the first"])
    page.get_by_role("listitem").filter(has_text="the first").hover()

    submit_images(console.api.http, ["the second"])

    expect(page.get_by_role("button", name="1 new job")).to_be_visible()
    expect(page.locator(".job-prompt")).to_have_text(["the first"])


def test_a_waiting_job_is_canceled_without_a_question_and_its_images_rendered_again(console, open_page, expect):
    page = open_page(console.url)
    create(page, "a {red|blue} fox")
    show_view(page, "Queue")

    page.get_by_role("button", name="Cancel the job: a red fox").click()
    expect(page.locator(".job-status")).to_have_text("Canceled")
    with page.expect_response("**/v1/inference") as answered:
        page.get_by_role("button", name="Retry 2 images: a red fox").click()

    prompts = [{"prompt": "a red fox", "seed": 42}, {"prompt": "a blue fox", "seed": 43}]
    assert answered.value.request.post_data_json["prompts"] == prompts
    expect(page.locator(".job-status")).to_have_text(["Waiting", "Canceled"])


def test_a_retry_that_fails_says_so(console, open_page, watch, expect):
    watch.allow("status of 503")
    page = open_page(console.url)
    create(page, "a fox")
    show_view(page, "Queue")
    page.get_by_role("button", name="Cancel the job: a fox").click()
    page.route("**/status", lambda route: route.fulfill(status=503, json={"detail": "Redis does not answer."}))

    page.get_by_role("button", name="Retry 1 image: a fox").click()

    expect(page.get_by_role("status").filter(has_text="Redis does not answer.")).to_be_visible()


def test_the_next_slots_are_those_after_the_page_that_is_shown(console, open_page, expect, slot_report):
    for number in range(60):
        console.api.ledger.workers.beat(f"gpu-{number:02}", slot_report())
    page = open_page(console.url, "#/queue")
    following = page.get_by_role("button", name="Next")
    held = HeldCalls(page, "**/v1/slots*cursor=*")

    following.click()
    expect(following).to_be_disabled()
    held.send()

    expect(page.get_by_text("Slots 25 to 48")).to_be_visible()
    expect(following).to_be_enabled()


def test_a_job_opens_to_its_images_and_their_steps(console, open_page, expect):
    submit_images(console.api.http, ["a fox", "an owl"], lora="neon.safetensors", priority=2)
    page = open_page(console.url, "#/queue")
    expect(page.get_by_text("No worker is connected. Jobs are kept, and start when one is.")).to_be_visible()
    row = page.get_by_role("listitem").filter(has_text="a fox")
    expect(row).to_contain_text("priority 2")
    expect(row.locator(".chip")).to_have_text("neon")

    row.get_by_role("button", expanded=False).click()
    console.api.ledger.renew(console.claim(), Progress(stage="denoise", step=3, steps=4))

    expect(row.get_by_role("article", name="a fox. Step 3 of 4")).to_be_visible()
    expect(row.get_by_role("article", name="Image 2. Waiting")).to_be_visible()


def test_the_slots_show_what_they_have_merged_and_draw(simulated, open_page, expect):
    page = open_page(simulated.url, "#/queue", key=simulated.key)
    slots = page.locator(".slot")
    expect(slots).to_have_count(2)

    # Each takes 3 s, as long as the time between two looks at the slots.
    slow = LONG | {"sample_steps": 150}
    submit_images(simulated.http, [slow | {"prompt": f"disc {number}"} for number in range(4)], lora="neon.safetensors")

    expect(slots.filter(has_text=re.compile("Step [0-9]+ of 150")).first).to_be_visible()
    expect(slots.filter(has_text="neon").first).to_be_visible()


def test_a_key_that_may_only_read_sees_the_images_but_no_form(console, open_page, watch, expect):
    watch.allow("status of 401")
    reader = console.add_key(roles=["read"])
    page = open_page(console.url, "#/create", key=reader)

    expect(page.get_by_text("Submitting needs the role submit.")).to_be_visible()
    expect(page.get_by_label(PROMPTS)).to_have_count(0)


def test_a_job_appears_although_the_pointer_rests_on_older_images(console, open_page, expect):
    submit_images(console.api.http, ["an old disc"])
    console.finish_queued()
    page = open_page(console.url)
    expect(page.get_by_role("heading", name="Today")).to_be_visible()
    page.locator(".wall").hover()

    submit_images(console.api.http, ["a new disc"])
    console.claim()

    expect(page.get_by_role("heading", name="Running now")).to_be_visible()


def test_slots_are_not_asked_for_again_before_the_answer(console, open_page, expect):
    asked = []
    page = open_page(console.url, "#/adapters")
    page.route("**/v1/slots*", lambda route: asked.append(route))
    page.clock.install()
    show_view(page, "Queue")
    expect(page.get_by_role("heading", name="Slots")).to_be_in_viewport()

    page.clock.run_for(10_000)
    assert len(asked) == 1
    asked[0].continue_()

    expect(page.get_by_text("No worker is connected. flux2 worker starts one; jobs wait until then.")).to_be_visible()
