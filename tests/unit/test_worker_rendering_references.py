"""Reference images from their files to the pixels of an item; `flux2 verify` compares them with AI Toolkit's."""

import io
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from hashlib import sha256

import pytest
import torch
from PIL import Image

from shared.errors import ItemCanceled, ObjectMissing, OutOfMemory, ReferenceRefused, StorageUnavailable
from shared.job import ReferenceRef, ReferenceReport
from shared.reference_image import prepare, read_rgb, read_size
from shared.references import reference_key
from shared.storage.directory import DirectoryStore
from worker.consumer.reference_files import reference_loader
from worker.model.placement import Placement, lacking_step_bytes
from worker.rendering import reference_encoder, reference_images
from worker.rendering.reference_encoder import ReferenceEncoder
from worker.rendering.reference_images import ReferenceImages, to_pixels
from worker.rendering.renderer import Renderer


def ignore(progress):
    pass


def encoded(image, fmt="PNG", **options):
    file = io.BytesIO()
    image.save(file, fmt, **options)
    return file.getvalue()


def drawn(color, size=(64, 80)):
    return encoded(Image.new("RGB", size, color))


RED, BLUE = drawn((200, 30, 40)), drawn((20, 40, 220), (96, 64))


class Files:
    """Files by sha256, with a count of the loads."""

    def __init__(self, *contents):
        self.contents = {sha256(data).hexdigest(): data for data in contents}
        self.loads = 0

    def __call__(self, digest):
        self.loads += 1
        return self.contents[digest]


def refs(*contents, first=1):
    return tuple(
        ReferenceRef(slot=slot, sha256=sha256(data).hexdigest()) for slot, data in enumerate(contents, start=first)
    )


@pytest.fixture
def renderer(components):
    def make(*contents, precision="bf16"):
        files = Files(*contents)
        return Renderer(components(precision), prompt_cache=4, load_reference=files), files

    return make


def test_transparent_pixels_keep_their_hidden_colour():
    image = Image.new("RGBA", (64, 64), (10, 20, 30, 0))

    assert read_rgb(encoded(image)).getpixel((5, 5)) == (10, 20, 30)


def test_an_exif_orientation_does_not_turn_an_image():
    exif = Image.Exif()
    exif[0x0112] = 6

    data = encoded(Image.new("RGB", (128, 64)), "JPEG", exif=exif)

    assert (read_size(data).width, read_size(data).height) == (128, 64)
    assert read_rgb(data).size == (128, 64)


def test_pixels_are_scaled_to_minus_one_to_one_with_channels_first():
    image = Image.new("RGB", (80, 64), (0, 255, 51))

    pixels = to_pixels(prepare(image))

    assert pixels.shape == (1, 3, 64, 80)
    assert pixels[0, :, 0, 0].tolist() == pytest.approx([-1, 1, -0.6])  # 2 * 51 / 255 - 1


@pytest.mark.parametrize("data", [b"", b"no image", RED[:40], RED[:-30]], ids=["empty", "text", "header", "cut"])
def test_a_file_that_is_no_complete_image_is_refused(data):
    with pytest.raises(ReferenceRefused, match="of the formats PNG, JPEG, WEBP, BMP"):
        read_rgb(data)


def test_an_image_that_would_take_too_much_memory_is_refused_by_its_header():
    # A file of 9 kB with one bit for each pixel.
    data = encoded(Image.new("1", (8300, 8300)))

    with pytest.raises(ReferenceRefused, match="8300x8300 pixels; a reference may have 67,108,864 at most: scale it"):
        read_size(data)


def test_coordinates_count_the_given_images_not_the_slots(components):
    encoder = ReferenceEncoder(components("fp32"), load=Files(RED, BLUE))
    one, three = ReferenceRef(slot=1, sha256=refs(RED)[0].sha256), ReferenceRef(slot=3, sha256=refs(BLUE)[0].sha256)

    references = encoder.encode(encoder.load((three, one)))

    # 5x4 tokens of slot 1 at time 10, then 4x6 tokens of slot 3 at time 20; rows and columns begin at 0 again.
    assert references.ids.shape == (20 + 24, 4)
    assert references.ids[0].tolist() == [10, 0, 0, 0]
    assert references.ids[19].tolist() == [10, 4, 3, 0]
    assert references.ids[20].tolist() == [20, 0, 0, 0]
    assert references.ids[43].tolist() == [20, 3, 5, 0]
    assert references.tokens.shape == (1, 44, 128)
    assert references.tokens.dtype == torch.bfloat16


def test_an_image_is_loaded_and_encoded_once(components, monkeypatch):
    runs = []
    monkeypatch.setattr(reference_encoder, "encode", lambda *given: runs.append(1) or torch.ones(1, 128, 5, 4))
    encoder = ReferenceEncoder(components("bf16"), load=(files := Files(RED)))

    first = encoder.encode(encoder.load(refs(RED)))
    again = encoder.encode(encoder.load(refs(RED, first=2)))

    assert (files.loads, len(runs)) == (1, 1)
    assert torch.equal(first.tokens, again.tokens)


def test_encoded_images_are_forgotten_after_memory_ran_out(components, monkeypatch):
    runs = []
    monkeypatch.setattr(reference_encoder, "encode", lambda *given: runs.append(1) or torch.ones(1, 128, 5, 4))
    encoder = ReferenceEncoder(components("bf16"), load=Files(RED))
    encoder.encode(encoder.load(refs(RED)))

    encoder.forget()
    encoder.encode(encoder.load(refs(RED)))

    assert len(runs) == 2


def test_tokens_that_are_forgotten_during_their_upload_are_not_used(components, monkeypatch):
    runs = []
    monkeypatch.setattr(reference_encoder, "encode", lambda *given: runs.append(1) or torch.ones(1, 128, 5, 4))
    encoder = ReferenceEncoder(components("bf16"), load=Files(RED))
    encoder.encode(encoder.load(refs(RED)))
    loaded = encoder.load(refs(RED))

    encoder.forget()
    encoder.upload(loaded)
    encoder.encode(encoder.load(refs(RED)))

    assert len(runs) == 2


def test_tiled_decoding_does_not_encode_references_in_tiles(components):
    from worker.rendering.decode import tiled_decoding

    encoder, model = ReferenceEncoder(components("fp32"), load=Files(RED)), components("fp32")
    whole = encoder.encode(encoder.load(refs(RED))).tokens
    encoder.forget()

    with tiled_decoding(model.autoencoder, pixels=32):
        tiled = encoder.encode(encoder.load(refs(RED))).tokens

    assert torch.equal(whole, tiled)


def test_a_reference_changes_the_image_and_is_reported(renderer, item):
    used, _ = renderer(RED, BLUE)
    stages, plain = [], used.render(item(), [], on_progress=ignore)

    rendered = used.render(
        item(references=refs(RED, BLUE)), [], on_progress=lambda progress: stages.append(progress.stage)
    )

    assert rendered.image.tobytes() != plain.image.tobytes()
    assert rendered.image.size == (64, 64)
    assert rendered.references == (
        ReferenceReport(slot=1, sha256=refs(RED)[0].sha256, width=64, height=80),
        ReferenceReport(slot=2, sha256=refs(BLUE)[0].sha256, width=96, height=64),
    )
    assert stages[:6] == ["fetch", "fetch", "encode", "encode", "encode", "adapter"]
    assert {"fetch_references", "encode_references"} <= rendered.timings.keys()
    assert plain.references == ()
    assert not {"fetch_references", "encode_references"} & plain.timings.keys()


def test_the_order_of_references_matters(renderer, item):
    used, _ = renderer(RED, BLUE)

    images = {
        used.render(item(references=refs(*order)), [], on_progress=ignore).image.tobytes()
        for order in ((RED, BLUE), (BLUE, RED))
    }

    assert len(images) == 2


def test_an_item_without_references_renders_as_before_after_one_with_them(renderer, item):
    used, _ = renderer(RED)
    before = used.render(item(), [], on_progress=ignore).image.tobytes()
    used.render(item(references=refs(RED)), [], on_progress=ignore)

    assert used.render(item(), [], on_progress=ignore).image.tobytes() == before


def test_the_next_items_reference_is_prepared_in_advance_but_not_encoded(renderer, item, monkeypatch):
    used, files = renderer(RED)
    calls, encode, read, pixels = [], reference_encoder.encode, reference_images.read_rgb, reference_encoder.to_pixels

    def record(name, function):
        return lambda *given: calls.append((name, threading.current_thread().name)) or function(*given)

    monkeypatch.setattr(reference_encoder, "encode", record("encode", encode))
    monkeypatch.setattr(reference_images, "read_rgb", record("read", read))
    monkeypatch.setattr(reference_encoder, "to_pixels", record("pixels", pixels))

    used.prepare(item(references=refs(RED)), [])
    assert (files.loads, [name for name, _ in calls]) == (1, ["read", "pixels"])
    prepared = used.render(item(references=refs(RED)), [], on_progress=ignore).image.tobytes()

    assert (files.loads, [name for name, _ in calls]) == (1, ["read", "pixels", "encode"])
    assert calls[-1][1].rpartition("_")[0] == "flux2-decode"
    fresh, _ = renderer(RED)
    assert fresh.render(item(references=refs(RED)), [], on_progress=ignore).image.tobytes() == prepared


def test_an_item_is_prepared_before_its_reference_is_loaded(components, item):
    def fail(digest):
        raise StorageUnavailable("the store is away")

    used = Renderer(components("bf16"), prompt_cache=4, load_reference=fail)

    with pytest.raises(StorageUnavailable):
        used.prepare(item(references=refs(RED)), [])

    assert used._prepared.next_item().spec == item(references=refs(RED))


def test_the_preparation_of_the_next_item_ends_between_two_images_when_a_worker_drains(renderer, item):
    used, files = renderer(RED, BLUE)

    def drain():
        if files.loads == 1:
            raise ItemCanceled("this worker drains")

    with pytest.raises(ItemCanceled):
        used.prepare(item(references=refs(RED, BLUE)), [], between=drain)

    assert files.loads == 1


def test_an_encoded_image_is_not_loaded_again_however_many_follow(components):
    images = [drawn((shade, 0, 0)) for shade in range(80)]
    encoder = ReferenceEncoder(components("bf16"), load=(files := Files(*images)))

    for _ in range(2):
        for image in images:
            encoder.encode(encoder.load(refs(image)))

    assert files.loads == 80


def test_a_slow_store_has_the_watchdogs_patience_for_each_image(components, item):
    events, files = [], Files(RED, BLUE)
    used = Renderer(
        components("bf16"), prompt_cache=4, load_reference=lambda digest: events.append("load") or files(digest)
    )

    used.render(item(references=refs(RED, BLUE)), [], on_progress=lambda progress: events.append(progress.stage))

    assert events[:4] == ["fetch", "load", "fetch", "load"]


def test_a_cancel_ends_the_loading_between_two_images(renderer, item):
    used, files = renderer(RED, BLUE)
    stages = []

    def cancel(progress):
        stages.append(progress.stage)
        if stages == ["fetch", "fetch"]:
            raise ItemCanceled("canceled")

    with pytest.raises(ItemCanceled):
        used.render(item(references=refs(RED, BLUE)), [], on_progress=cancel)

    assert files.loads == 1


def test_a_cancel_ends_the_encoding_between_two_images(renderer, item, monkeypatch):
    used, _ = renderer(RED, BLUE)
    stages, runs, encode = [], [], reference_encoder.encode
    monkeypatch.setattr(reference_encoder, "encode", lambda *given: runs.append(1) or encode(*given))

    def cancel(progress):
        stages.append(progress.stage)
        if stages.count("encode") == 2:
            raise ItemCanceled("canceled")

    with pytest.raises(ItemCanceled):
        used.render(item(references=refs(RED, BLUE)), [], on_progress=cancel)
    assert len(runs) == 1

    # What was encoded is used when the item comes again.
    used.render(item(references=refs(RED, BLUE)), [], on_progress=ignore)
    assert len(runs) == 2


def test_an_item_that_runs_out_of_memory_while_it_encodes_is_encoded_again(renderer, item, monkeypatch):
    used, files = renderer(RED, BLUE)
    expected = used.render(item(references=refs(RED, BLUE)), [], on_progress=ignore).image.tobytes()
    used.references.forget()
    runs, encode = [], reference_encoder.encode

    def run_out_once(autoencoder, pixels):
        runs.append(pixels.shape[-1])
        if len(runs) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return encode(autoencoder, pixels)

    monkeypatch.setattr(reference_encoder, "encode", run_out_once)
    rendered = used.render(item(references=refs(RED, BLUE)), [], on_progress=ignore)

    # The first image too: it may have been encoded while memory was short.
    assert runs == [64, 96, 64, 96]
    assert files.loads == 2
    assert rendered.image.tobytes() == expected


def test_threads_decode_one_image_at_a_time_and_each_image_once(monkeypatch):
    meet, reads = threading.Barrier(2), []

    def load(digest):
        meet.wait(timeout=30)  # both threads have found the cache empty
        return RED

    monkeypatch.setattr(reference_images, "read_rgb", lambda data: reads.append(1) or read_rgb(data))
    images = ReferenceImages(load)

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(images.prepared, [refs(RED)[0].sha256] * 2)

    assert len(reads) == 1
    assert first.image.tobytes() == second.image.tobytes()


@pytest.mark.parametrize("files_only", [False, True])
def test_a_truncated_image_is_refused_by_its_slot_in_every_engine(components, files_only):
    cut = RED[:-30]
    encoder = ReferenceEncoder(components("bf16"), load=Files(BLUE, cut))
    both = (*refs(BLUE), *refs(cut, first=3))

    with pytest.raises(ReferenceRefused, match="reference image 3: the file is not a complete image") as refusal:
        encoder.encode(encoder.load(both, files_only=files_only))

    assert refusal.value.field == "ctrl_img_3"


def test_an_image_whose_crop_is_longer_than_eight_to_one_is_encoded(components):
    image = drawn("white", (79, 632))  # exactly 8:1, and 64x624 after the crop
    encoder = ReferenceEncoder(components("bf16"), load=Files(image))

    references = encoder.encode(encoder.load(refs(image)))

    assert references.tokens.shape == (1, 4 * 39, 128)


def test_a_palette_with_transparency_gives_its_colours_without_a_warning():
    image = Image.new("RGB", (64, 64), (10, 200, 30)).quantize(4)

    data = encoded(image, transparency=bytes([0, 128, 255, 255]))

    assert read_rgb(data).getpixel((5, 5)) == (10, 200, 30)


@pytest.mark.parametrize(
    ("contents", "words"),
    [
        ((RED, drawn("white", (60, 100))), "reference image 2: the image has 60x100 pixels"),
        ((drawn("white", (640, 70)), RED), "reference image 1: the image has 640x70 pixels; one side"),
        ((RED, RED, b"text"), "reference image 3: the file is no image"),
    ],
)
def test_an_unusable_reference_is_refused_by_its_slot_before_anything_is_encoded(contents, words, renderer, item):
    used, _ = renderer(*contents)
    stages = []

    with pytest.raises(ReferenceRefused, match=words) as refusal:
        used.render(item(references=refs(*contents)), [], on_progress=lambda progress: stages.append(progress.stage))

    assert refusal.value.field == f"ctrl_img_{words.split()[2].rstrip(':')}"
    assert set(stages) == {"fetch"}


def test_a_renderer_without_a_store_refuses_references(components, item):
    with pytest.raises(ReferenceRefused, match="reference image 1: this renderer has no store of reference images"):
        Renderer(components("bf16"), prompt_cache=1).render(item(references=refs(RED)), [], on_progress=ignore)


def test_an_item_whose_references_cannot_fit_is_refused_before_its_first_step(components, item):
    # The goldens' model is 64 wide: 16 + 512 + 20 tokens of 64 channels of 2 bytes, 14 times, are 982,016 bytes.
    model = replace(components("bf16"), placement=Placement("resident", "host", 0, work_bytes=982_015))
    used = Renderer(model, prompt_cache=1, load_reference=Files(RED))
    stages = []

    with pytest.raises(
        OutOfMemory, match=r"64x64 with references of 64x80 does not fit on cpu: .* or fewer or smaller"
    ):
        used.render(item(references=refs(RED)), [], on_progress=lambda progress: stages.append(progress.stage))

    assert stages == ["fetch"]
    used.render(item(), [], on_progress=ignore)


def test_a_step_lacks_memory_only_if_its_least_need_exceeds_what_the_weights_leave():
    placement = Placement("resident", "host", 0, work_bytes=28_000)

    assert lacking_step_bytes(placement, tokens=10, channels=100, dtype=torch.bfloat16) == 0
    assert lacking_step_bytes(placement, tokens=11, channels=100, dtype=torch.bfloat16) == 2_800
    assert lacking_step_bytes(replace(placement, work_bytes=None), tokens=10**9, channels=9, dtype=torch.float32) == 0


def test_a_worker_loads_references_from_the_object_store_and_checks_their_bytes(tmp_path):
    store = DirectoryStore(tmp_path)
    load, digest = reference_loader(store), sha256(RED).hexdigest()
    store.put(reference_key(digest), RED, content_type="image/png")

    assert load(digest) == RED

    store.put(reference_key(digest), BLUE, content_type="image/png")
    with pytest.raises(ReferenceRefused, match=r"does not have the sha256 .* submit the request with the image again"):
        load(digest)


def test_a_reference_that_the_store_no_longer_has_is_refused_and_not_retried():
    class Empty:
        def get(self, key):
            raise ObjectMissing(f"GET {key}: 404")

    with pytest.raises(ReferenceRefused, match=r"no longer has the image .* submit the request with the image again"):
        reference_loader(Empty())("ab" * 32)
