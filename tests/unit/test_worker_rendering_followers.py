"""A renderer with a follower on a second device gives the bytes of one without, and notices when the follower fails."""

import io
import os
import signal
import socket
from contextlib import nullcontext
from dataclasses import replace
from hashlib import sha256
from multiprocessing.connection import Connection
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from shared.errors import AdapterRefused, CheckpointError, DeviceFault, ItemCanceled, OutOfMemory
from shared.job import ReferenceRef
from worker.model.load import load_components
from worker.rendering.errors import Disconnected, GroupOutOfMemory
from worker.rendering.follower_messages import Answer, Channel
from worker.rendering.followers import Followers
from worker.rendering.renderer import Renderer

CPU = torch.device("cpu")
# In float32, a product of ten rows has other bits than one of twenty on some processors.
PRECISION = "bf16"


def drawn(color):
    file = io.BytesIO()
    Image.new("RGB", (64, 80), color).save(file, "PNG")
    return file.getvalue()


REFERENCE = drawn((200, 30, 40))


def ignore(progress):
    pass


@pytest.fixture(scope="module")
def alone(model_settings):
    """A renderer on one device."""
    components = load_components(model_settings(PRECISION), device=CPU, hf_token=None)
    return Renderer(components, prompt_cache=4, load_reference=lambda _: REFERENCE)


@pytest.fixture(scope="module")
def followers(model_settings):
    # The processes share two cores.
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    started = Followers(model_settings(PRECISION), [CPU], hf_token=None, adapter_cache_bytes=100_000_000)
    monkeypatch.undo()
    yield started
    started.close()


@pytest.fixture(scope="module")
def together(followers, model_settings):
    """A renderer whose follower is a second process."""
    components = load_components(model_settings(PRECISION), device=CPU, hf_token=None)
    renderer = Renderer(components, prompt_cache=4, load_reference=lambda _: REFERENCE, followers=followers)
    renderer.warm_up()
    return renderer


def test_the_code_that_is_compared_with_uncompiled_code_is_that_of_the_group(model_settings, monkeypatch):
    components = replace(load_components(model_settings(PRECISION), device=CPU, hf_token=None), compiled=True)
    order = []
    followers = SimpleNamespace(
        join=lambda _: order.append("join"), check=lambda engine, call: order.append("check") or True
    )
    renderer = Renderer(components, prompt_cache=4, followers=followers)
    monkeypatch.setattr(renderer._engines["exact"], "predict", lambda _: order.append("pass") or torch.zeros(1))

    renderer.warm_up()

    # One pass in compiled code, and one without.
    assert order == ["join", "pass", "pass", "check"]


def count_divided(renderer, monkeypatch):
    """Return a list that gets one entry for each pass that is divided."""
    group, passes = renderer._followers._group, []
    gather = group.gather_image
    monkeypatch.setattr(group, "gather_image", lambda rows: passes.append(rows.shape[1]) or gather(rows))
    return passes


def test_two_devices_render_the_bytes_of_one(alone, together, item, goldens, adapter_ref, monkeypatch):
    first, second = goldens / "adapters/lora_r4_bf16.safetensors", goldens / "adapters/lokr_lowrank_bf16.safetensors"
    reference = ReferenceRef(slot=1, sha256=sha256(REFERENCE).hexdigest())
    items = [
        (item(), []),
        (item(adapters=(adapter_ref(first),), seed=1, num_inference_steps=1), [first]),
        (
            item(adapters=(adapter_ref(second, 0.7), adapter_ref(first, 0.5)), width=80, num_inference_steps=1),
            [second, first],
        ),
        (item(references=(reference,), num_inference_steps=1), []),
        (item(num_inference_steps=1, sigmas=(0.75,)), []),
    ]
    passes = count_divided(together, monkeypatch)

    found = [together.render(spec, files, on_progress=ignore) for spec, files in items]

    expected = [alone.render(spec, files, on_progress=ignore) for spec, files in items]
    assert [one.image.tobytes() for one in found] == [one.image.tobytes() for one in expected]
    assert [one.adapters for one in found] == [one.adapters for one in expected]
    # The leader has half of the 16 or 20 tokens, with 20 more of the reference.
    assert passes == [8, 8, 8, 10, 18, 8]


def test_the_next_items_swap_begins_in_the_last_step_on_every_device(alone, together, item, goldens, adapter_ref):
    path = goldens / "adapters/lora_r4_bf16.safetensors"
    spec = item(adapters=(adapter_ref(path),), seed=3)

    def prepare(progress):
        if (progress.stage, progress.step) == ("denoise", 0):
            together.prepare(spec, [path])

    together.render(item(seed=2), [], on_progress=prepare)
    found = together.render(spec, [path], on_progress=ignore)

    assert found.image.tobytes() == alone.render(spec, [path], on_progress=ignore).image.tobytes()


def test_unmerged_adapters_run_on_one_device(alone, together, item, goldens, adapter_ref, monkeypatch):
    path = goldens / "adapters/dora_bf16.safetensors"
    spec = item(adapters=(adapter_ref(path),), adapter_mode="live", num_inference_steps=1)
    passes = count_divided(together, monkeypatch)

    found = together.render(spec, [path], on_progress=ignore)

    assert passes == []
    assert found.image.tobytes() == alone.render(spec, [path], on_progress=ignore).image.tobytes()


def test_after_a_cancel_the_next_item_renders_on_both(alone, together, item, monkeypatch):
    def cancel(progress):
        if progress.step == 1:
            raise ItemCanceled("canceled by its caller")

    with pytest.raises(ItemCanceled):
        together.render(item(num_inference_steps=4), [], on_progress=cancel)
    passes = count_divided(together, monkeypatch)

    found = together.render(item(seed=5, num_inference_steps=1), [], on_progress=ignore)

    assert (
        found.image.tobytes()
        == alone.render(item(seed=5, num_inference_steps=1), [], on_progress=ignore).image.tobytes()
    )
    assert len(passes) == 1


def test_an_adapter_that_no_device_can_use_fails_its_item_only(together, alone, item, tmp_path, adapter_ref):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no adapter")

    with pytest.raises(AdapterRefused):
        together.render(item(adapters=(adapter_ref(broken),)), [broken], on_progress=ignore)

    found = together.render(item(seed=6, num_inference_steps=1), [], on_progress=ignore)
    assert (
        found.image.tobytes()
        == alone.render(item(seed=6, num_inference_steps=1), [], on_progress=ignore).image.tobytes()
    )


def test_a_follower_that_gets_sigterm_renders_until_its_leader_ends_it(alone, together, followers, item):
    process = followers._followers[0].process

    def terminate(progress):
        if progress.step == 1:
            os.kill(process.pid, signal.SIGTERM)

    found = together.render(item(seed=7), [], on_progress=terminate)

    assert found.image.tobytes() == alone.render(item(seed=7), [], on_progress=ignore).image.tobytes()


def test_the_error_of_a_follower_between_passes_is_the_items_error(together, followers, item):
    channel = followers._followers[0].channel

    def confuse(progress):
        if (progress.stage, progress.step) == ("denoise", 1):
            channel.send("no message")
            assert channel.poll(30)

    with pytest.raises(DeviceFault, match="the follower on cpu failed: TypeError: unexpected message str"):
        together.render(item(num_inference_steps=4), [], on_progress=confuse)


# The last test, because it ends the follower.
def test_a_follower_that_dies_within_an_item_is_a_device_fault(together, followers, item):
    process = followers._followers[0].process

    def kill(progress):
        if progress.step == 1:
            os.kill(process.pid, signal.SIGKILL)

    with pytest.raises(DeviceFault, match=r"follower on cpu|a pass on several devices failed"):
        together.render(item(num_inference_steps=4), [], on_progress=kill)
    with pytest.raises(DeviceFault, match="the follower on cpu has ended"):
        together.render(item(), [], on_progress=ignore)


@pytest.mark.parametrize(
    ("answer", "may_fail", "error"),
    [
        (Answer(), False, None),
        (Answer("RuntimeError: broken"), False, DeviceFault),
        (Answer("OutOfMemoryError: full", is_out_of_memory=True), False, GroupOutOfMemory),
        # The leader's own error ends the item.
        (Answer("AdapterRefused: not finite"), True, None),
        # The leader's device waits for this one.
        (Answer("RuntimeError: broken", is_in_pass=True), True, DeviceFault),
        (Answer("OutOfMemoryError: full", is_in_pass=True, is_out_of_memory=True), True, GroupOutOfMemory),
    ],
)
def test_a_failure_within_a_pass_is_always_the_groups(answer, may_fail, error):
    group = Followers.__new__(Followers)
    group._followers = [SimpleNamespace(device=CPU, answer=lambda timeout_s: answer)]

    with pytest.raises(error) if error else nullcontext():
        group._collect(timeout_s=1, may_fail=may_fail)


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (RuntimeError("an illegal memory access"), DeviceFault),
        (torch.OutOfMemoryError("Tried to allocate 20.00 GiB. GPU 0 has none"), GroupOutOfMemory),
    ],
)
def test_an_error_of_the_leader_within_a_pass_is_the_groups(error, raised):
    group = Followers.__new__(Followers)
    group._followers = []
    group._group = SimpleNamespace(dividing=nullcontext, is_in_pass=True)

    with pytest.raises(raised), group._together(None):
        raise error


def test_an_item_for_which_a_device_of_the_group_has_no_memory_is_too_large(alone, item, monkeypatch):
    def fail(*_, **__):
        raise GroupOutOfMemory("the follower on cuda:1 has too little memory")

    monkeypatch.setattr(alone, "_denoise", fail)

    with pytest.raises(OutOfMemory, match="64x64 does not fit on cpu: the follower on cuda:1 has too little") as raised:
        alone.render(item(), [], on_progress=ignore)

    assert raised.value.ends_process


def test_a_group_without_memory_for_a_typical_step_says_so_at_the_start(monkeypatch):
    def fail(*_):
        raise GroupOutOfMemory("the follower on cuda:1 has too little memory")

    group = Followers.__new__(Followers)
    monkeypatch.setattr(group, "_count_differing", fail)

    with pytest.raises(CheckpointError, match="cuda:1 has too little memory for a typical step; choose"):
        group.check(None, None)


def test_an_end_within_a_message_is_the_end_of_the_other_process():
    ours, theirs = socket.socketpair()
    channel = Channel(Connection(ours.detach()))
    # The length of a message of 9 bytes, and three of them.
    theirs.sendall(b"\0\0\0\x09abc")
    theirs.close()

    with pytest.raises(Disconnected):
        channel.receive()
    with pytest.raises(Disconnected):
        channel.send("anything")
    channel.close()
