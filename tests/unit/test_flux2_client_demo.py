"""`flux2 demo` renders the reference API's example; tests/e2e runs the command at a smaller size."""

from flux2_client.demo import demo_request
from shared.request import EXAMPLE_REQUEST


def test_the_demo_sends_the_reference_apis_example_verbatim():
    assert demo_request(1.0) == EXAMPLE_REQUEST


def test_the_demo_changes_only_the_multiplier_and_the_size_of_the_example():
    sent = demo_request(0.5, size_px=256)

    [prompt], [adapter] = EXAMPLE_REQUEST["prompts"], EXAMPLE_REQUEST["loras"]
    assert sent == {
        **EXAMPLE_REQUEST,
        "prompts": [{**prompt, "width": 256, "height": 256}],
        "loras": [{**adapter, "network_multiplier": 0.5}],
    }
