"""`python -m benchmarks.gpu.table` makes one Markdown table of the images that several machines measured."""

import json

import pytest
import typer
from documents import ROOT
from typer.testing import CliRunner

from benchmarks.gpu.table import image_table, main, read_rows

H100 = "NVIDIA H100 80GB HBM3"


def image(seconds, device=H100, **changes):
    usual = {"engine": "compiled", "size": 1024, "sampling": "25 steps", "steps": 25, "devices": 1, "model": "flux2"}
    return {"what": "image", "seconds": seconds, "device": device, "tiny": False, **usual, **changes}


@pytest.fixture
def table(tmp_path):
    """Runs the command on one file for each list of rows."""
    app = typer.Typer()
    app.command()(main)

    def run(*machines):
        files = [tmp_path / f"{number}.jsonl" for number in range(len(machines))]
        for file, rows in zip(files, machines, strict=True):
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(file) for file in files])

    return run


def test_rows_of_several_machines_make_one_table(table):
    klein = {"model": "flux2_klein_4b", "engine": "fast"}
    turbo = {"sampling": "preset turbo", "steps": 8}
    distilled = {**klein, "sampling": "flux2_klein_4b_distilled", "steps": 4}
    step = {"what": "step", "engine": "compiled", "size": 1024, "median_ms": 445.0, "device": H100, "model": "flux2"}

    result = table(
        [step, image(11.26), image(14.5, engine="ai-toolkit"), image(0.8504, **distilled)],
        [image(123.4, "NVIDIA H200", size=2048), image(2.344, "NVIDIA H200", **klein)],
        [image(6.0, "NVIDIA H200", devices=2), image(2.0, "NVIDIA H200", devices=2, **turbo)],
    )

    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        "| card | image | engine | GPUs per slot | FLUX.2 [dev], 25 steps | FLUX.2 [dev], preset turbo, 8 steps "
        "| FLUX.2 [klein] base 4B, 25 steps | FLUX.2 [klein] 4B, distilled to 4 steps |",
        "|---|---|---|---|---|---|---|---|",
        "| H100 80GB | 1024x1024 | AI Toolkit, eager | 1 | 14.5 s | | | |",
        "| H100 80GB | 1024x1024 | `exact` | 1 | 11.3 s | | | |",
        "| H100 80GB | 1024x1024 | `fast` | 1 | | | | 0.85 s |",
        "| H200 | 1024x1024 | `exact` | 2 | 6 s | 2 s | | |",
        "| H200 | 1024x1024 | `fast` | 1 | | | 2.34 s | |",
        "| H200 | 2048x2048 | `exact` | 1 | 123 s | | | |",
    ]


def test_of_two_measurements_of_one_image_the_last_counts():
    assert image_table([image(12.0), image(11.0)]).endswith("| 11 s |")


def test_images_of_fast_with_attention_in_bf16_have_their_own_line():
    rows = [image(6.9, engine="fast", attention="fp8"), image(7.2, engine="fast", attention="bf16")]

    _, _, *lines = image_table(rows).splitlines()

    assert lines == [
        "| H100 80GB | 1024x1024 | `fast`, attention in bf16 | 1 | 7.2 s |",
        "| H100 80GB | 1024x1024 | `fast` | 1 | 6.9 s |",
    ]


def test_a_small_model_is_not_taken_for_the_full_size():
    assert "| tiny FLUX.2 [dev], 25 steps |" in image_table([image(0.1, tiny=True)])


def test_files_without_images_are_an_error(table):
    result = table([{"what": "step", "median_ms": 445.0}])

    assert result.exit_code == 2
    assert "no image was measured in these files" in result.output


@pytest.mark.parametrize("line", ["a table", "3"])
def test_a_line_that_is_no_row_is_named(tmp_path, line):
    file = tmp_path / "rows.jsonl"
    file.write_text(f"{json.dumps(image(1.0))}\n{line}\n")

    with pytest.raises(ValueError, match=rf"rows.jsonl, line 2 is no row of a measurement: {line}"):
        list(read_rows(file))


@pytest.mark.parametrize("page", ["README.md", "docs/performance.md"])
def test_pages_show_the_table_of_the_rows_in_the_repository(page):
    files = sorted((ROOT / "benchmarks/gpu/rows").glob("*.jsonl"))

    assert image_table([row for file in files for row in read_rows(file)]) in (ROOT / page).read_text()
