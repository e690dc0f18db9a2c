"""`flux2 render`: a request file to pictures, as a worker would make them."""

import base64
import hashlib
import json
import os
import subprocess
import sys

import pytest
from PIL import Image

from shared.image_parameters import read_parameters
from worker.model.demo_model import write_tiny_adapter, write_tiny_checkpoint
from worker.offline import render_request


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

    def run(request, output="out", **variables):
        file = tmp_path / "request.json"
        file.write_text(json.dumps(request))
        command = [sys.executable, "-m", "shared.cli", "render", str(file), "--output", str(tmp_path / output)]
        return subprocess.run(
            [*command, "--device", "cpu"], capture_output=True, text=True, env=environment | variables, check=False
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


def test_an_adapter_of_the_hub_gives_the_same_pictures_as_its_file(hub, settings, tmp_path):
    write_tiny_checkpoint(tmp_path / "tiny")
    write_tiny_adapter(tmp_path / "adapters" / "style.safetensors")
    hub.push("ann/styles", {"style.safetensors": (tmp_path / "adapters" / "style.safetensors").read_bytes()})
    folders = {"path": str(tmp_path / "tiny"), "text_encoder": str(tmp_path / "tiny" / "text_encoder")}
    made = settings(
        model={**folders, "precision": "fp32"},
        adapters={"root": tmp_path / "adapters"},
        sources={"private_hosts": hub.store_place, "cache_dir": tmp_path / "cache"},
        worker={"device": "cpu"},
    )

    local, linked = (
        list(render_request(json.dumps(request(loras=[{"path": path}])).encode(), tmp_path / name, made))
        for name, path in (("local", "style.safetensors"), ("linked", "hf://ann/styles/style.safetensors"))
    )

    for one, other in zip(local, linked, strict=True):
        assert Image.open(one.file).tobytes() == Image.open(other.file).tobytes()
        assert one.report["adapters"][0]["sha256"] == other.report["adapters"][0]["sha256"]
        assert "fetch" not in one.report["timings"]
        assert "fetch" in other.report["timings"]
    assert linked[0].report["adapters"][0]["path"] == "hf://ann/styles/style.safetensors@main"


def drawn(path, color):
    Image.new("RGB", (101, 87), color).save(path)
    return path.read_bytes()


def test_reference_images_may_be_files_of_this_host_links_and_text(hub, settings, tmp_path, monkeypatch):
    write_tiny_checkpoint(tmp_path / "tiny")
    data = drawn(tmp_path / "in.png", "red")
    hub.push("ann/robots", {"in.png": data})
    folders = {"path": str(tmp_path / "tiny"), "text_encoder": str(tmp_path / "tiny" / "text_encoder")}
    made = settings(
        model={**folders, "precision": "fp32"},
        sources={"private_hosts": hub.store_place},
        storage={"backend": "directory", "directory": tmp_path / "objects"},
        worker={"device": "cpu"},
    )
    sha256 = hashlib.sha256(data).hexdigest()
    stored = tmp_path / "objects" / "references" / sha256
    stored.parent.mkdir(parents=True)
    stored.write_bytes(data)
    monkeypatch.chdir(tmp_path)
    size = {"prompt": "cat", "width": 64, "height": 64, "sample_steps": 2, "seed": 1}
    texts = ["in.png", base64.b64encode(data).decode(), "hf://ann/robots/in.png", f"upload:{sha256}"]
    prompts = [size, *({**size, "ctrl_img_2": text} for text in texts)]

    plain, *edits = render_request(json.dumps(request(prompts=prompts, loras=[])).encode(), tmp_path / "out", made)

    used = [{"slot": 2, "sha256": sha256, "width": 96, "height": 80}]
    assert [edit.report["references"] for edit in edits] == [used] * 4
    assert [edit.report["ctrl_img_2"] for edit in edits] == [f"upload:{sha256}"] * 4
    [pixels] = {Image.open(edit.file).tobytes() for edit in edits}
    assert pixels != Image.open(plain.file).tobytes()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gone.png", "there is no file 'gone.png', and the text is neither an image in base64 nor an address"),
        (".", "there is no file '.', and"),
        ("narrow.png", "at most 8 times as long as the other"),
        ("ftp://host/in.png", "is a ftp address"),
    ],
)
def test_a_reference_image_that_cannot_be_used_is_refused_before_the_model_is_loaded(
    flux2_render, tmp_path, text, message
):
    Image.new("RGB", (1000, 100)).save(tmp_path / "narrow.png")
    text = str(tmp_path / text) if text == "narrow.png" else text

    done = flux2_render(
        request(prompts=[{"prompt": "a"}, {"prompt": "b", "ctrl_img_3": text}]), FLUX2_MODEL_PATH="nowhere"
    )

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("prompts[1].ctrl_img_3: ")
    assert message in done.stderr


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


@pytest.mark.parametrize(
    ("body", "output", "variables", "reason"),
    [
        (request(), "request.json/out", {}, "request.json/out: Not a directory; choose another --output"),
        (request(loras=[{"path": "cut.safetensors"}]), "out", {}, "cut.safetensors"),
        (request(engine="fast"), "out", {}, "the engine 'fast' cannot run: FLUX2_MODEL_PRECISION must be fp8"),
        (request(engine="ai-toolkit"), "out", {}, "the engine 'ai-toolkit' cannot run: AI_TOOLKIT_PATH must name"),
        (request(engine="exact"), "out", {"FLUX2_MODEL_PRECISION": "fp8"}, "the engine 'exact' cannot run"),
        (
            request(),
            "out",
            {"FLUX2_MODEL_TEXT_ENCODER": "/no/encoder"},
            "FLUX2_MODEL_TEXT_ENCODER /no/encoder: no such",
        ),
    ],
)
def test_everything_that_needs_no_model_is_refused_before_it_is_loaded(
    flux2_render, tmp_path, body, output, variables, reason
):
    (tmp_path / "adapters" / "cut.safetensors").write_bytes(b"\xff" * 20)
    # A model that could not be loaded: its problem must not come first.
    (tmp_path / "tiny" / "flux2-dev.safetensors").write_bytes(b"")

    done = flux2_render(body, output, **variables)

    assert done.returncode == 1
    assert reason in done.stderr
    assert len(done.stderr.splitlines()) == 1
