"""`flux2 reproduce` on images that real workers rendered."""

import io
import json

import pytest
from PIL import Image
from typer.testing import CliRunner

from flux2_client.commands import app
from shared.demo_model import DEMO_ADAPTER
from shared.errors import ApiError
from shared.image_parameters import read_parameters
from shared.provenance.local_certificate import write_local_certificate
from shared.provenance.signer import open_signer
from shared.settings import ProvenanceSettings
from worker.consumer.image_file import encode
from worker.model.demo_model import STYLES, write_tiny_adapter

JOB_S = 120.0


@pytest.fixture
def render(client):
    """Return the file of an image with an adapter."""

    def render(lora, **fields):
        prompt = {"prompt": "[trigger] a cat", "width": 128, "height": 96, "sample_steps": 3, "seed": 7}
        job = client.submit(
            {"model": "flux2", "trigger_word": "sks", "loras": [lora], "prompts": [prompt | fields]},
        )
        assert client.wait(job.request_id, timeout_s=JOB_S).status == "succeeded"
        [image] = client.result(job.request_id).images
        return image.bytes()

    return render


@pytest.fixture
def reproduce(stack):
    def run(*arguments):
        return CliRunner().invoke(app, ["reproduce", *map(str, arguments), "--url", stack.url])

    return run


@pytest.mark.parametrize("fields", [{}, {"sample_steps": None, "sigmas": [1.0, 0.6, 0.2]}])
def test_an_image_has_the_same_pixels_again_with_a_signature_too(fields, render, reproduce, tmp_path):
    made = write_local_certificate(tmp_path / "certificate", name="Studio Aal", days=1)
    signer = open_signer(ProvenanceSettings(certificate=made.certificate, key=made.key))
    path, again = tmp_path / "a.png", tmp_path / "again" / "b.png"
    unsigned = render({"path": DEMO_ADAPTER, "network_multiplier": 0.5}, **fields)
    path.write_bytes(signer.sign(unsigned, media_type="image/png", model="flux2", has_references=False))

    done = reproduce(path, "--output", again, "--trust", made.authority)

    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-2:] == [
        f"identical: all {128 * 96 * 3:,} pixel values are the same",
        "signature: signed by Studio Aal, whose certificate is trusted; nothing changed since",
    ]
    one, other = read_parameters(path.read_bytes()), read_parameters(again.read_bytes())
    assert one["request_id"] != other["request_id"]
    assert Image.open(path).tobytes() == Image.open(again).tobytes()


def test_a_difference_is_counted_and_its_likely_causes_are_named(render, reproduce, tmp_path):
    data = render({"path": DEMO_ADAPTER})
    parameters = read_parameters(data)
    parameters["pipeline"]["versions"]["torch"] = "2.0.0"
    parameters["pipeline"]["device"] = "cuda:3 NVIDIA H200"
    image = Image.open(io.BytesIO(data))
    image.putpixel((0, 0), tuple(value ^ 4 for value in image.getpixel((0, 0))))
    (tmp_path / "a.png").write_bytes(encode(image, "png", parameters))

    done = reproduce(tmp_path / "a.png", "--json")

    assert done.exit_code == 1
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["identical"], found["differing"], found["largest_difference"]) == (False, 3, 4)
    assert found["causes"][0] == "device: NVIDIA H200 in the file, cpu now"
    assert found["causes"][1].startswith("version of torch: 2.0.0 in the file, ")
    assert len(found["causes"]) == 2


def test_an_adapter_with_other_bytes_is_refused(stack, render, reproduce, tmp_path):
    path = stack.adapter_root / "reproduced.safetensors"
    write_tiny_adapter(path, STYLES[0])
    (tmp_path / "a.png").write_bytes(render({"path": path.name}))
    path.unlink()
    write_tiny_adapter(path, STYLES[1])

    done = reproduce(tmp_path / "a.png")

    assert isinstance(done.exception, ApiError)
    assert "sha256" in str(done.exception)
