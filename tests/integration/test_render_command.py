"""`flux2 render`: a request file to pictures, as a worker would make them."""

import json
import os
import subprocess
import sys

import pytest

from worker.consumer.image_file import read_parameters
from worker.model.demo_model import write_tiny_adapter, write_tiny_checkpoint


@pytest.fixture
def flux2_render(tmp_path):
    write_tiny_checkpoint(tmp_path / "tiny")
    write_tiny_adapter(tmp_path / "adapters" / "style.safetensors")
    environment = {
        **os.environ,
        "FLUX2_MODEL_PATH": str(tmp_path / "tiny"),
        "FLUX2_MODEL_TEXT_ENCODER": str(tmp_path / "tiny" / "text_encoder"),
        "FLUX2_MODEL_PRECISION": "fp32",
        "FLUX2_ADAPTERS_ROOT": str(tmp_path / "adapters"),
    }

    def run(request):
        file = tmp_path / "request.json"
        file.write_text(json.dumps(request))
        command = [sys.executable, "-m", "shared.cli", "render", str(file), "--output", str(tmp_path / "out")]
        return subprocess.run(
            [*command, "--device", "cpu"], capture_output=True, text=True, env=environment, check=False
        )

    return run


def request(**fields):
    prompts = [{"prompt": f"cat {n}", "width": 64, "height": 64, "sample_steps": 2} for n in range(2)]
    return {"model": "flux2", "prompts": prompts, "loras": [{"path": "style.safetensors"}], **fields}


def test_each_prompt_becomes_a_picture_with_a_report(flux2_render, tmp_path):
    done = flux2_render(request())

    assert done.returncode == 0, done.stderr
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    assert [report["seed"] for report in reports] == [42, 43]
    assert [report["pipeline"]["change"] for report in reports] == ["merged", "none"]
    assert reports[0]["adapters"][0]["layers_touched"] > 0
    assert read_parameters((tmp_path / "out" / "1.png").read_bytes())["prompt"] == "cat 1"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (request(loras=[{"path": "nothing.safetensors"}]), "no adapter at"),
        (request(model="flux2_klein_4b"), "FLUX2_MODEL_ID is 'flux2'"),
        (request(prompts=[]), "prompts"),
    ],
)
def test_a_request_that_the_api_would_refuse_gives_one_line(flux2_render, body, reason):
    done = flux2_render(body)

    assert done.returncode == 1
    assert reason in done.stderr
    assert "Traceback" not in done.stderr
