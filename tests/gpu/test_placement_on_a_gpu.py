"""On a CUDA device: placements within artificial limits, each with the same bits."""

import mmap
import random
from dataclasses import replace

import pytest
import torch

from shared.errors import CheckpointError
from shared.job import ItemSpec
from shared.settings import ModelSettings
from worker.checkpoint import pinned_file
from worker.checkpoint.reader import Reader, Region
from worker.model.demo_model import STYLES, write_tiny_adapter, write_tiny_checkpoint
from worker.model.load import load_components
from worker.rendering.renderer import Renderer
from worker.verify.golden_models import adapter_ref

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_checkpoint(folder)
    return folder


@pytest.fixture
def load(checkpoint):
    def load(**values):
        values = {"precision": "bf16", **values}
        settings = ModelSettings(path=str(checkpoint), text_encoder=str(checkpoint / "text_encoder"), **values)
        return load_components(settings, device=torch.device("cuda:0"), hf_token=None)

    yield load
    torch.cuda.set_per_process_memory_fraction(1.0, 0)


def pictures(components, *adapters, prepared=False):
    """Render two prompts without, with and again without adapters; each may be prepared before the one before it."""
    renderer = Renderer(components, prompt_cache=4 * prepared, adapter_cache_bytes=100_000_000 * prepared)
    items = []
    for path in (None, *adapters, None):
        for prompt in ("a blue star", "three red circles"):
            spec = ItemSpec(
                model="flux2", prompt=prompt, neg="", width=128, height=128, requested_width=128,
                requested_height=128, seed=5, num_inference_steps=3, guidance_scale=4.0,
                adapters=() if path is None else (adapter_ref(path, 1.0),), output_format="png",
                engine=components.precision.engine,
            )  # fmt: skip
            items.append((spec, [path] if path else []))
    found = []
    for item, following in zip(items, [*items[1:], items[0]], strict=True):
        if prepared:
            renderer.prepare(*following)
        found.append(renderer.render(*item, on_progress=lambda _: None).image.tobytes())
    renderer.swapper.wait()
    assert (renderer.swapper.count_corrupted(), renderer.swapper.corrupted) == (0, 0)
    return found


def test_the_placement_changes_no_bit(load, tmp_path):
    adapter = tmp_path / "adapter.safetensors"
    write_tiny_adapter(adapter)

    expected = pictures(load(text_encoder_place="resident", clean_weights="device"), adapter)

    assert pictures(load(text_encoder_place="streamed", clean_weights="device"), adapter) == expected
    assert pictures(load(text_encoder_place="streamed", clean_weights="host"), adapter) == expected
    assert pictures(load(text_encoder_place="streamed", clean_weights="file"), adapter) == expected


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize(("clean_weights", "share"), [("device", 0), ("host", 0), ("file", 0), ("file", 0.5)])
def test_a_swap_gives_the_same_bits_wherever_base_weights_come_from(
    clean_weights, share, prepared, precision, load, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        "worker.kernels.low_rank._MIN_VALUES", 0
    )  # the kernel handles small layers too, and gives other bits
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    write_tiny_adapter(first)
    write_tiny_adapter(second, STYLES[0])
    components = load(clean_weights=clean_weights, precision=precision)
    bytes_of_all = sum(2 * weight.numel() for weight in components.transformer.parameters())
    placement = replace(components.placement, device_backup_bytes=int(share * bytes_of_all))

    found = pictures(replace(components, placement=placement), first, second, prepared=prepared)
    one_by_one = [pictures(load(clean_weights="file", precision=precision), path) for path in (first, second)]

    base, changed = one_by_one[0][:2], [pair[2:4] for pair in one_by_one]
    assert found == [*base, *changed[0], *changed[1], *base]
    assert len({*found}) == 6


@pytest.mark.parametrize("pieces", [0, 2, 4])
def test_bytes_reach_the_device_from_pinned_pages_and_through_threads(pieces, tmp_path, monkeypatch):
    monkeypatch.setattr(pinned_file, "_PIECE_BYTES", 3 * mmap.PAGESIZE)
    path, size = tmp_path / "bytes", 10 * mmap.PAGESIZE + 100
    path.write_bytes(random.Random(1).randbytes(size))
    target = torch.zeros(size - 50, dtype=torch.uint8, device="cuda:0")

    with Reader(torch.device("cuda:0"), block_bytes=5000) as reader:
        reader.pin(path)
        pinned = reader._pinned[path]
        pinned.pinning.result()
        monkeypatch.setattr(pinned, "_pinned", dict(list(pinned._pinned.items())[:pieces]))  # the last of the file
        reader.read(Region(path, 50, size - 50), target)()
        torch.cuda.synchronize()

    assert target.cpu().numpy().tobytes() == path.read_bytes()[50:]


def test_a_memory_limit_is_enforced(load):
    with pytest.raises(CheckpointError, match=r"2\.0 GB are free on cuda:0"):
        load(memory_gb=2)

    load(memory_gb=5)
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(6_000_000_000, dtype=torch.uint8, device="cuda:0")
