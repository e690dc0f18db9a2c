"""`python -m benchmarks.gpu` runs every measurement on a CPU with a small model; slow compiling is left out here."""

import json
import os
import shutil

import pytest
import typer
from typer.testing import CliRunner

from benchmarks.gpu.__main__ import EngineName, Part, main
from benchmarks.gpu.table import image_table
from worker.model.head_exchange import EXCHANGES

ROOT = os.environ.get("AI_TOOLKIT_PATH")  # read at import: a fixture removes it from the tests' environment

needs_a_compiler = pytest.mark.skipif(
    not (shutil.which("c++") or shutil.which("g++")), reason="no C++ compiler, which compiling needs on a CPU"
)


def run(out, *arguments):
    app = typer.Typer()
    app.command()(main)
    few = ("--steps", "2", "--repeat", "2", "--items", "2", "--out", str(out))
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, ["--tiny", "--device", "cpu", *few, *arguments])


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Runs the benchmark and returns the rows in its file, which equal the printed rows."""

    def measure(*arguments):
        if ROOT:
            monkeypatch.setenv("AI_TOOLKIT_PATH", ROOT)
        out = tmp_path / "rows.jsonl"
        result = run(out, "--json", *arguments)
        assert result.exit_code == 0, result.output
        assert result.stdout == out.read_text()
        return [json.loads(line) for line in result.stdout.splitlines()]

    return measure


@pytest.fixture
def measured_together(tmp_path):
    """Runs parts on two devices and returns the rows; without typer's runner, whose stderr is no file for followers."""

    def measure(*parts, size, engine=(EngineName.EXACT,), **settings):
        out = tmp_path / "rows.jsonl"
        chosen = {"only": list(map(Part, parts)), "engine": list(engine), **settings}
        main(tiny=True, device="cpu", devices=2, size=[size], steps=2, repeat=2, as_json=True, out=out, **chosen)
        return [json.loads(line) for line in out.read_text().splitlines()]

    return measure


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method. is deprecated:DeprecationWarning")
@pytest.mark.parametrize(
    ("model", "last"), [("flux2_klein_9b", []), pytest.param("flux2", ["fast"], marks=needs_a_compiler)]
)
def test_every_measurement_gives_times_and_ratios(measured, model, last):
    engines = [*(["ai-toolkit"] if ROOT else []), "diffusers", "exact", *last]

    rows = measured("--model", model, *(word for engine in engines for word in ("--engine", engine)))

    by_part = {row["what"].split(" ")[0].rstrip(":"): row for row in rows}
    others = {"placement", "cold", "step", "references", "image", "switch", "prompt", "together", "batch", "few"}
    assert by_part.keys() == {"bf16", "host"} | others
    assert all(row["device"] == "cpu" for row in rows)
    times = [row.get("median_ms", row.get("seconds")) for row in rows if row["what"] != "placement"]
    assert all(time > 0 for time in times)
    # Diffusers' pipelines are not compared with reference images.
    of_engines = [row for row in rows if "engine" in row and (ROOT or "references" not in row)]
    assert all(row["ratio"] > 0 and row["against"] for row in of_engines)
    for part in ("step", "image"):
        assert [row["engine"] for row in rows if row["what"] == part] == engines
        first = next(row for row in rows if row["what"] == part)
        assert (first["ratio"], first["against"]) == (1.0, f"{engines[0]} eager")
    ceiling = by_part["bf16"]["tflops"]
    assert all(
        row["tflops"] > 0 and row["of_ceiling"] == pytest.approx(row["tflops"] / ceiling)
        for row in rows
        if row["what"] == "step" and row["engine"] != "fast"
    )
    assert all(row["finite"] for row in rows if row["what"] in ("step", "image"))
    assert all(row["drift"] == 0 for row in rows if row["what"].startswith(("switch", "batch")))
    assert all(0 < row["relative_error"] < 0.1 for row in rows if row["what"] == "step" and row["engine"] == "fast")
    assert 0 <= by_part["batch"]["idle_share"] < 1


@pytest.mark.skipif(not ROOT, reason="AI_TOOLKIT_PATH names no checkout of AI Toolkit")
def test_no_element_of_our_latents_differs_from_ai_toolkits(measured):
    parts = ("--only", "steps", "--only", "references", "--only", "image")

    rows = measured("--engine", "ai-toolkit", "--engine", "exact", *parts)

    ours = [row for row in rows if row.get("engine") == "exact"]
    assert [row["differing"] for row in ours] == [{"ai-toolkit": 0}] * 4
    assert {row["against"] for row in ours} == {"ai-toolkit eager"}


@pytest.mark.parametrize(
    ("model", "names", "levels"),
    [
        ("flux2", ["preset turbo"], (8, 2.5)),
        ("flux2_klein_4b", ["flux2_klein_4b_distilled"], (4, 1.0)),
    ],
)
def test_images_of_few_steps_are_compared_with_one_of_all_steps(measured, model, names, levels):
    _, usual, *rows = measured("--model", model, "--only", "few-steps", "--engine", "exact")

    assert (usual["what"], usual["sampling"], usual["steps"], usual["model"]) == ("image", "2 steps", 2, model)
    assert [row["what"] for row in rows] == [f"few steps: {name}" for name in names]
    assert {(row["steps"], row["guidance_scale"]) for row in rows} == {levels}
    assert all(row["against"] == "2 steps" for row in rows)
    assert all(row["ratio"] == pytest.approx(row["seconds"] / usual["seconds"]) for row in rows)
    assert all(
        row["seconds"] == pytest.approx(sum(row[f"{stage}_s"] for stage in ("denoise", "decode", "pixels", "encode")))
        for row in rows
    )


def test_one_measurement_at_two_sizes_with_a_chosen_placement(measured):
    sizes = ("--size", "64", "--size", "96")
    places = ("--text-encoder-place", "streamed", "--clean-weights", "device")

    placement, *steps = measured("--only", "steps", "--engine", "exact", *sizes, *places)

    assert placement["placement"].startswith("text encoder streamed, base weights from device")
    assert [(row["what"], row["size"]) for row in steps] == [("step", 64), ("step", 96)]


def test_images_on_two_devices_have_the_bits_of_images_that_one_device_renders_once(measured_together):
    rows = measured_together("image", "few-steps", "parallel", size=512)

    images = [row for row in rows if "sampling" in row]
    assert [(row["what"], row["sampling"], row["devices"]) for row in images] == [
        ("image", "2 steps", 1),
        ("few steps: preset turbo", "preset turbo", 1),
        ("parallel: image on 2, 2 steps", "2 steps", 2),
        ("parallel: image on 2, preset turbo", "preset turbo", 2),
    ]
    for one, two in zip(images[:2], images[2:], strict=True):
        assert (two["differing"], two["of"], two["against"]) == (0, 128 * 32 * 32, "one device")
        assert two["ratio"] == pytest.approx(two["seconds"] / one["seconds"])
    head, _, *lines = image_table(images).splitlines()
    assert head.endswith("| tiny FLUX.2 [dev], 2 steps | tiny FLUX.2 [dev], preset turbo, 8 steps |")
    assert [line.split(" | ")[:4] for line in lines] == [
        ["| cpu", "512x512", "`exact`, not compiled", devices] for devices in ("1", "2")
    ]


@needs_a_compiler
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method. is deprecated:DeprecationWarning")
def test_one_device_attends_as_a_worker_does_and_its_latents_are_not_compared_with_others(measured_together):
    rows = measured_together("parallel", size=512, engine=[EngineName.FAST], attention="fp8")

    images = [row for row in rows if row.get("sampling") == "2 steps"]
    assert [(row["devices"], row["attention"], "differing" in row) for row in images] == [
        (1, "fp8", False),
        (2, "bf16", False),
    ]
    # Both attend in bfloat16 here.
    [steps] = [row for row in rows if row["what"] == "parallel: step on 2"]
    assert steps["differing"] == 0


@needs_a_compiler
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method. is deprecated:DeprecationWarning")
def test_each_precision_that_two_devices_render_together_is_measured_in_a_process_of_its_own(measured_together):
    before = dict(EXCHANGES)

    rows = measured_together("steps", "parallel", size=64, engine=[EngineName.EXACT, EngineName.FAST])

    # A process that has led one group of GPUs cannot lead another.
    assert before == EXCHANGES
    together = [row for row in rows if row["what"] == "parallel: step on 2"]
    assert [(row["engine"], row["differing"]) for row in together] == [("exact", 0), ("fast", 0)]
    # The second process compares its latents and times with those of the first.
    [steps] = [row for row in rows if (row["what"], row.get("engine")) == ("step", "fast")]
    assert 0 < steps["relative_error"] < 0.1


def test_steps_alone_are_measured_on_two_devices_if_only_steps_are_asked_for(measured_together):
    rows = measured_together("steps", "parallel", size=64)

    assert [row["what"] for row in rows] == [
        "placement",
        "step",
        "parallel: first steps",
        "parallel: step on 1",
        "parallel: step on 2",
    ]
    assert rows[-1]["differing"] == 0


@pytest.mark.parametrize(("option", "counts"), [((), (1, 3)), (("--references", "2"), (2,))])
def test_steps_with_reference_images_are_measured_and_so_is_encoding_one(measured, option, counts):
    _, encoding, *steps = measured("--only", "references", "--engine", "exact", *option)

    assert (encoding["what"], encoding["size"]) == ("references: prepare and encode one", 128)
    assert encoding["seconds"] > 0
    assert [(row["what"], row["references"], row["finite"]) for row in steps] == [
        (f"references: step with {count}", count, True) for count in counts
    ]


@pytest.mark.parametrize(
    ("option", "chosen", "needed"),
    [
        (("--references", "1"), ("--only", "steps"), "--only references"),
        (("--devices", "2"), ("--only", "steps"), "--only parallel"),
        (("--attention", "bf16"), ("--engine", "exact"), "--engine fast"),
    ],
)
def test_an_option_without_its_part_or_engine_is_an_error(option, chosen, needed, tmp_path):
    result = run(tmp_path / "rows.jsonl", *option, *chosen)

    assert result.exit_code == 2
    assert f"{option[0]} needs {needed}" in result.output


def test_without_json_a_table_shows_each_row(tmp_path):
    result = run(tmp_path / "rows.jsonl", "--only", "prompt", "--engine", "exact")

    assert result.exit_code == 0, result.output
    assert "prompt encode" in result.stdout


def test_engine_ai_toolkit_without_a_checkout_is_an_error(tmp_path):
    result = run(tmp_path / "rows.jsonl", "--engine", "ai-toolkit")

    assert result.exit_code == 2
    assert not (tmp_path / "rows.jsonl").exists()
