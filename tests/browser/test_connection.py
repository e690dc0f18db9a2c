"""What the page says while the API or the network is away, and that it goes on."""

from console_pages import submit_images


def test_the_page_goes_on_when_the_api_is_back(console, open_page, watch, expect):
    watch.allow("ERR_CONNECTION_REFUSED|ERR_INCOMPLETE_CHUNKED_ENCODING|ERR_CONNECTION_RESET|ERR_EMPTY_RESPONSE")
    page = open_page(console.url, "#/adapters")
    service = page.locator(".service")
    expect(service).to_have_text("No worker is connected; jobs wait.")

    console.stop()
    expect(service).to_have_text("Reconnecting. Nothing is lost.")
    console.start()

    expect(service).to_have_text("No worker is connected; jobs wait.")


def test_a_view_that_is_opened_without_a_network_opens_when_it_is_back(console, open_page, watch, expect):
    watch.allow("ERR_INTERNET_DISCONNECTED")
    page = open_page(console.url, "#/queue")
    page.locator("main#main:not([aria-busy])").wait_for()

    page.context.set_offline(True)
    page.get_by_role("link", name="Adapters").click()
    expect(page.get_by_role("alert")).to_contain_text("cannot be loaded")
    with page.expect_event("requestfailed", lambda request: "/v1/caller" in request.url):
        page.get_by_role("button", name="Try again").click()
    page.context.set_offline(False)
    page.get_by_role("button", name="Try again").click()

    expect(page.get_by_role("heading", name="Adapters")).to_be_visible()


def test_two_tabs_show_the_same_service(simulated, open_page, expect):
    page = open_page(simulated.url, key=simulated.key)
    other = page.context.new_page()
    other.goto(f"{simulated.url}/#/queue")

    for tab in (page, other):
        expect(tab.locator(".service")).to_contain_text("2 slots")


def test_a_tab_that_nobody_looks_at_lets_go_of_the_stream_until_somebody_comes_back(console, open_page, expect):
    page = open_page(console.url, "#/queue")
    expect(page.get_by_role("heading", name="Nothing waits or runs")).to_be_visible()
    page.clock.install()
    with page.expect_event("requestfailed", lambda request: "/v1/events" in request.url):
        page.evaluate(SHOW, False)
        page.clock.run_for(31_000)
    submit_images(console.api.http, ["a fox"])

    with page.expect_request("**/v1/events*"):
        page.evaluate(SHOW, True)

    expect(page.get_by_role("list", name="Jobs")).to_contain_text("a fox")


# Headless tabs are always shown.
SHOW = """(isShown) => {
  Object.defineProperty(document, "hidden", { configurable: true, value: !isShown });
  document.dispatchEvent(new Event("visibilitychange"));
}"""
