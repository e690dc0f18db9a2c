"""What people do on pages of the console, for the tests in a browser."""

import json
import os

PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1280, "height": 800}
THEMES = ("light", "dark")


def log_in(page, key, *, remember=False):
    """Enter a key where the page asks for one."""
    page.get_by_label("API key", exact=True).fill(key)
    if remember:
        page.get_by_label("Remember it in this browser").check()
    page.get_by_role("button", name="Log in").click()


def show_view(page, title):
    """Go to a view by the navigation, and wait until it is there."""
    page.get_by_role("navigation", name="Views").get_by_role("link", name=title, exact=True).click()
    page.locator("main#main:not([aria-busy])").wait_for()


def submit_images(http, prompts, *, lora=None, **fields):
    """Submit a job by the API, and return its id.

    Args:
        http: a client of the API.
        prompts: texts, or whole entries of a request.
    """
    entries = [{"prompt": prompt} if isinstance(prompt, str) else prompt for prompt in prompts]
    loras = [{"path": lora}] if lora else []
    small = {"width": 128, "height": 96, "sample_steps": 4}
    body = {"model": "flux2", "prompts": [small | entry for entry in entries], "loras": loras, **fields}
    answer = http.post("/v1/inference", json=body)
    assert answer.status_code == 202, answer.text
    return answer.json()["request_id"]


class HeldCalls:
    """Calls of a page that are not sent until the test says so."""

    def __init__(self, page, pattern, **options):
        self._page = page
        self._routes = []
        page.route(pattern, lambda route: self._routes.append(route), **options)

    def take(self):
        """Return the last call that is held, and wait for one; the page may ask a little before it arrives here."""
        while not self._routes:
            self._page.wait_for_timeout(10)
        return self._routes.pop()

    def send(self):
        """Send all calls that are held, of which there is at least one."""
        self.take().continue_()
        while self._routes:
            self.take().continue_()


def find_violations(page, axe, *, impacts=("serious", "critical")):
    """Return what axe finds on a page, as texts.

    Args:
        axe: the source of axe-core.
    """
    # `evaluate` is not subject to the page's policy, which allows no foreign script.
    page.evaluate(axe)
    found = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
    return [
        f"{each['impact']} {each['id']}: {each['help']}: {json.dumps([node['target'] for node in each['nodes']][:5])}"
        for each in found["violations"]
        if each["impact"] in impacts
    ]


def how_busy():
    """Return how much longer everything takes on a host with more to do than it has cores; at least 1."""
    return max(1.0, os.getloadavg()[0] / os.cpu_count())
