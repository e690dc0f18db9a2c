"""A training config with reference images is submitted to an API that serves HTTP."""

import hashlib
import io
import json
import shutil

import pytest
from PIL import Image

from flux2_client.client import Client
from flux2_client.replay import read_references
from flux2_client.replay_submission import submit_config
from shared.console import LineConsole
from shared.errors import ApiError, ConfigImagesNotFound, ConfigRefused, UploadRefused
from shared.job import ItemSpec
from shared.ledger import keys
from shared.ledger.spec_parts import join_texts
from shared.references import reference_key

LORA = "my_lora_job/my_lora.safetensors"


@pytest.fixture
def submit(api, adapter_root, goldens, tmp_path):
    """Submit a config of samples; the console's text is `submit.printed`."""
    (adapter_root / LORA).parent.mkdir()
    shutil.copy(goldens / "adapters/lora_r4_bf16.safetensors", adapter_root / LORA)
    console = LineConsole(file=io.StringIO(), width=200)

    def submit(*samples, folders=()):
        config = tmp_path / "config.yaml"
        process = {"model": {"arch": "flux2"}, "sample": {"width": 64, "height": 64, "samples": samples}}
        config.write_text(json.dumps({"config": {"name": "x", "process": [process]}}))
        with Client(api.url) as client:
            return submit_config(console, client, config, lora=LORA, folders=folders)

    submit.printed = console.file
    return submit


def draw(path, color):
    Image.new("RGB", (64, 64), color).save(path)
    return str(path)


def items(api, replay):
    """Return the stored specs, which workers read."""
    found = []
    for sample in replay.samples:
        texts = api.ledger.redis.lrange(keys.specs(sample.request_id), 0, -1)
        own = texts[sample.index + 1 : sample.index + 2]
        found.append(ItemSpec.model_validate_json(join_texts([texts[0], *own])))
    return found


def test_each_distinct_image_is_uploaded_once_and_named_in_each_sample(api, submit, tmp_path):
    red, copy, blue = draw(tmp_path / "a.png", "red"), draw(tmp_path / "b.png", "red"), draw(tmp_path / "c.png", "blue")

    submitted = submit(
        {"prompt": "one", "ctrl_img": red, "ctrl_img_2": blue},
        {"prompt": f"two --ctrl_img {copy}"},
        {"prompt": "three"},
    )

    first, second, third = items(api, submitted.replay)
    digests = {path.name: digest for digest, path in submitted.images.items()}
    assert set(digests) == {"b.png", "c.png"}
    assert [(ref.slot, ref.sha256) for ref in first.references] == [(1, digests["b.png"]), (2, digests["c.png"])]
    assert [(ref.slot, ref.sha256) for ref in second.references] == [(1, digests["b.png"])]
    assert third.references == ()
    assert "2 reference images were uploaded" in submit.printed.getvalue()
    assert api.store.get(reference_key(digests["c.png"])) == (tmp_path / "c.png").read_bytes()


def test_a_config_without_images_is_submitted_at_once(api, submit):
    submitted = submit({"prompt": "one"})

    assert [spec.prompt for spec in items(api, submitted.replay)] == ["one"]
    assert submitted.images == {}
    assert submit.printed.getvalue() == ""


def test_nothing_is_uploaded_if_one_image_is_missing(api, submit, tmp_path):
    red = draw(tmp_path / "a.png", "red")

    with pytest.raises(ConfigImagesNotFound, match="1 of the config's 2 reference images"):
        submit({"prompt": "one", "ctrl_img": red, "ctrl_img_2": "/workspace/b.png"})

    assert api.store.list_objects("references", limit=10) == []


def test_nothing_is_uploaded_if_a_config_names_more_images_than_the_api_takes(api, submit, tmp_path):
    limit = api.services.settings.references.max_images
    images = [draw(tmp_path / f"{number}.bmp", (number, 0, 0)) for number in range(limit + 1)]

    with pytest.raises(ConfigRefused, match=f"names {limit + 1} different reference images, and one replay may name"):
        submit(*({"prompt": "one", "ctrl_img": image} for image in images))

    assert list(api.store.list_objects("references", limit=10)) == []


def test_a_file_that_changes_while_it_is_uploaded_starts_no_job(api, submit, tmp_path, monkeypatch):
    red, copy = draw(tmp_path / "a.png", "red"), draw(tmp_path / "b.png", "red")
    upload_image = Client.upload_image

    def changed(self, image):
        draw(image, "blue")
        return upload_image(self, image)

    monkeypatch.setattr(Client, "upload_image", changed)
    with pytest.raises(UploadRefused, match=r"b\.png has changed while the command ran; run it again"):
        submit({"prompt": "one", "ctrl_img": red, "ctrl_img_2": copy})

    assert api.ledger.redis.keys(f"{keys.PREFIX}job:*") == []


def test_the_contact_sheet_leaves_out_files_that_changed_or_were_removed(tmp_path):
    same, changed, removed = (tmp_path / name for name in ("same.png", "changed.png", "removed.png"))
    for path in (same, changed, removed):
        draw(path, "red")
    digest = hashlib.sha256(same.read_bytes()).hexdigest()
    draw(changed, "blue")
    removed.unlink()

    assert list(read_references({digest: same})) == [digest]
    assert read_references({digest: changed}) == {}
    assert read_references({digest: removed}) == {}


def test_other_refusals_of_a_config_are_reported_as_they_are(submit):
    with pytest.raises(
        ApiError, match=r"INVALID_CONFIG: config\.process\[0\]\.sample\.samples\[0\]\.ctrl_img is 5, not text"
    ):
        submit({"prompt": "one", "ctrl_img": 5})
