"""What a person sees on a terminal, and what the shell completes."""

import io
import json
import os
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from rich.progress import Progress, TextColumn

from flux2_client.models import Adapter, ImageInfo, Job, Outputs, Result, Status, UploadedImage
from flux2_client.report import BarReport
from flux2_client.tables import print_adapter, print_result
from shared.adapters.inspection import inspect_adapter
from shared.adapters.inspection_text import describe_rows
from shared.console import LineConsole


def status(state, *items, **fields):
    body = {
        "request_id": "job-1",
        "status": state,
        "model": "flux2",
        "progress": 0.5,
        "created_at": "",
        "items": [{"index": index, "status": item} for index, item in enumerate(items)],
        **fields,
    }
    return Status.model_validate(body)


def image(**fields):
    pipeline = {"engine": "exact", "precision": "fp32", "device": "cpu", "change": "none"}
    body = {
        "index": 0,
        "format": "png",
        "width": 64,
        "height": 64,
        "url": "",
        "url_expires_at": "",
        "sha256": "",
        "size_bytes": 1,
        "pipeline": pipeline,
        **fields,
    }
    return ImageInfo.model_validate(body)


def test_a_terminal_shows_one_bar_for_all_jobs_and_the_reason_of_a_failure():
    text = io.StringIO()
    console = LineConsole(file=text, force_terminal=True, width=120)
    job = Job(request_id="job-1", status_url="", result_url="", created_at="")

    with Progress(TextColumn("{task.description}"), TextColumn("{task.percentage:>3.0f} %"), console=console) as bar:
        report = BarReport(console, bar, bar.add_task("in_queue", total=None))
        report.submitted(job, images=2)
        report.progressed(status("in_progress", "succeeded", "in_progress"))
        report.saved(image(warnings=["its end has [no] effect"]), Path("a.png"))
        report.ended(status("failed", "succeeded", "failed", error="it [broke]"))

    shown = text.getvalue()
    assert "request job-1: 2 images" in shown
    assert "1 of 2 images, 1 saved" in shown
    assert "warning: image 0: its end has [no] effect" in shown
    assert " 50 %" in shown
    assert "request job-1 failed: 1 of 2 images, 1 failed: it [broke]" in shown


ADAPTER = {
    "path": "a.safetensors",
    "sha256": "ab12cd34ef56" + "0" * 52,
    "multiplier": 0.8,
    "ranks": [4],
    "layers_touched": 10,
    "layers_total": 31,
}


@pytest.mark.parametrize(
    ("scale", "text"),
    [
        ({"scale_range": [0.25, 2], "scale_sources": ["tensor"]}, "scale 0.25 to 2 (alpha tensors), "),
        ({"scale_range": [1, 1], "scale_sources": ["none"]}, "scale 1 (no alpha stored), "),
        ({"scale_range": None, "scale_sources": []}, ""),
        # An API of an earlier version.
        ({}, ""),
    ],
)
def test_a_result_names_each_adapter_with_its_scale(scale, text, capsys):
    shown = image(adapters=[ADAPTER | scale])

    print_result(Result(request_id="job-1", status="succeeded", outputs=Outputs(images=[shown]), created_at=""))

    expected = f"  adapter: a.safetensors x 0.8: 10 of 31 layers, ranks 4, {text}sha256 ab12cd34ef56"
    assert expected in capsys.readouterr().out.splitlines()


def test_an_adapter_file_is_described_in_the_words_of_flux2_inspect(goldens, capsys):
    found = inspect_adapter(goldens / "adapters_hand/AB_alpha_mixedrank.safetensors", max_bytes=2**30)
    answer = {"path": "a", "model": "flux2", **json.loads(json.dumps(asdict(found)))}

    print_adapter(Adapter.model_validate(answer))

    shown = dict(re.split(r"  +", line, maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert shown == {"path": "a", "model": "flux2", **dict(describe_rows(asdict(found)))}
    assert (shown["scale"], shown["blocks"]) == ("0.25 to 2 (alpha tensors)", "3 double, 2 single, 0 other")


def test_the_shell_completes_commands_and_options():
    flux2 = Path(sys.executable).with_name("flux2")

    def complete(words):
        environment = {
            **os.environ,
            "_FLUX2_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split()) - 1),
        }
        done = subprocess.run([flux2], env=environment, capture_output=True, text=True, check=False)
        return done.stdout.split()

    assert complete("flux2 sub") == ["submit"]
    assert "--prompts" in complete("flux2 submit --pro")


def test_a_terminal_shows_each_reference_once():
    text = io.StringIO()
    console = LineConsole(file=text, force_terminal=True, width=200)
    used = [{"slot": 1, "sha256": "ab" * 32, "width": 64, "height": 80}]
    photo = UploadedImage.model_validate(
        {
            "path": f"upload:{'ab' * 32}",
            "sha256": "ab" * 32,
            "size_bytes": 1,
            "width": 70,
            "height": 80,
            "effective_width": 64,
            "effective_height": 80,
            "warnings": ["the image is animated: its first frame is used"],
        }
    )

    with Progress(TextColumn("{task.description}"), console=console) as bar:
        report = BarReport(console, bar, bar.add_task("in_queue", total=None))
        report.uploaded(photo, Path("photo.png"))
        for index in range(3):
            report.saved(image(index=index, references=used), Path(f"{index}.png"))

    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.getvalue()).splitlines()
    found = [line.strip() for line in lines if "upload:" in line or "warning" in line]
    assert found == [
        f"uploaded photo.png: upload:{'ab' * 32}, 70x80, used at 64x80",
        "warning: photo.png: the image is animated: its first frame is used",
        f"image 0 of : reference 1: upload:{'ab' * 32}, used at 64x80",
    ]
