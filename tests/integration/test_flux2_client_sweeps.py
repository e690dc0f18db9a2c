"""`flux2 sweep` against the API and two simulated slots: from a training run to the request of its best image."""

import csv
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from flux2_client.client import Client
from flux2_client.commands import app
from tools.simulated_service import simulated_service

ADAPTERS = Path(__file__).parents[2] / "worker/model/demo_checkpoint/adapters"
RUN_CONFIG = """
config:
  name: my_lora
  process:
    - training_folder: output
      trigger_word: sks
      model: {arch: flux2}
      sample:
        {format: png, seed: 5, walk_seed: true, width: 128, height: 96, sample_steps: 2, guidance_scale: 4,
         prompts: ["[trigger] a fox", "a house"]}
"""
# Images that take long enough to be interrupted: 5 s each.
SLOW = ("--size", "1024", "--steps", "100")


@pytest.fixture(scope="module")
def url(empty_redis_server, tmp_path_factory):
    """The address of a service with two slots, for all tests of this file."""
    log = tmp_path_factory.mktemp("service") / "log"
    with pytest.MonkeyPatch.context() as patch, log.open("wb") as file:
        for name in [name for name in os.environ if name.startswith(("FLUX2_", "AWS_"))]:
            patch.delenv(name)
        with simulated_service(
            slots=2,
            step_s=0.05,
            adapters={"neon.safetensors": "neon", "job/sks_robot.safetensors": "sks_robot"},
            redis=empty_redis_server,
            log=file,
        ) as address:
            yield address


@pytest.fixture(scope="module")
def client(url):
    with Client(url) as client:
        yield client


@pytest.fixture
def flux2(url, tmp_path, monkeypatch):
    """Run `flux2 sweep` in this process and in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        return CliRunner().invoke(app, ["sweep", *map(str, arguments), "--url", url])

    return run


@pytest.fixture
def interrupted(url, tmp_path):
    """Run `flux2 sweep` as a process until it waits, and interrupt it; the value has its id and its messages."""

    def run(*arguments):
        command = [sys.executable, "-m", "shared.cli", "sweep", *arguments, "--url", url]
        with subprocess.Popen(
            command,
            cwd=tmp_path,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        ) as process:
            submitted, _ = process.stdout.readline(), process.stdout.readline()
            process.send_signal(signal.SIGINT)
            _, messages = process.communicate(timeout=60)
        assert process.returncode == 130, messages
        return submitted.split()[1].rstrip(":"), messages

    return run


def rows_of(folder):
    return list(csv.DictReader(Path(folder, "sweep.csv").read_text().splitlines()))


def events(done):
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_training_run_becomes_images_their_files_and_a_request_of_the_best(flux2, client, url, tmp_path):
    folder = tmp_path / "output" / "my_lora"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(RUN_CONFIG)
    shutil.copy(ADAPTERS / "neon.safetensors", folder / "my_lora_000000250.safetensors")
    shutil.copy(ADAPTERS / "blueprint.safetensors", folder / "my_lora.safetensors")

    done = flux2("--training-run", folder, "--base", "--multiplier", "0.6,1", "--output", "out", "--json")

    assert done.exit_code == 0, done.output
    found = events(done)
    assert [event["file"] for event in found if event["event"] == "uploaded"] == [
        str(folder / "my_lora_000000250.safetensors"), str(folder / "my_lora.safetensors"),
    ]  # fmt: skip
    assert [event["file"] for event in found if event["event"] == "written"] == [
        f"out/{name}" for name in ("index.html", "contact-sheet.png", "sweep.csv", "sweep.json")
    ]
    [ended] = [event for event in found if event["event"] == "ended"]
    assert (ended["status"], ended["images"], ended["succeeded"]) == ("succeeded", 10, 10)
    rows = rows_of("out")
    assert [(row["checkpoint"], row["multiplier"], row["prompt"], row["seed"]) for row in rows[:4]] == [
        ("base", "", "sks a fox", "5"), ("base", "", "a house", "6"),
        ("250", "0.6", "sks a fox", "5"), ("250", "0.6", "a house", "6"),
    ]  # fmt: skip
    assert [row["file"] for row in rows] == [f"images/{path.name}" for path in sorted(Path("out/images").iterdir())]
    with Image.open("out/contact-sheet.png") as sheet:
        assert sheet.width > 2 * 192
    # Whoever gets the folder must not get at the service's objects.
    assert "://" not in Path("out/sweep.json").read_text()

    best = CliRunner().invoke(app, ["sweep", "best", "out", "--pick", "250:0.6"])
    again = flux2("--training-run", folder, "--output", "again", "--json")

    request = json.loads(best.stdout)
    assert request["loras"][0]["network_multiplier"] == 0.6
    job = client.submit(request)
    assert client.wait(job.request_id, timeout_s=60).status == "succeeded"
    assert [image.seed for image in client.result(job.request_id).images] == [5, 6]
    # The service has the files now.
    assert [event for event in events(again) if event["event"] == "uploaded"] == []


def test_a_file_that_the_service_has_under_its_adapter_root_is_not_uploaded(flux2, tmp_path):
    shutil.copy(ADAPTERS / "sks_robot.safetensors", tmp_path)
    options = ("-p", "a", "--size", "64", "--steps", "1", "--no-wait", "--json")

    done = flux2("--checkpoint", "robot=sks_robot.safetensors", "--checkpoint", "neon.safetensors", *options)

    assert done.exit_code == 0, done.output
    [submitted] = events(done)
    assert [job["checkpoint"] for job in submitted["jobs"]] == ["robot", "neon"]
    listed = flux2("status", submitted["sweep_id"], "--json")
    assert events(listed)[0]["images"] == 2
    assert submitted["sweep_id"] in flux2("list").stdout


def test_a_dry_run_says_what_a_sweep_would_take_and_submits_nothing(flux2, client, tmp_path):
    before = [line.sweep_id for line in client.sweeps()]
    shutil.copy(ADAPTERS / "edit.safetensors", tmp_path)
    options = ("--checkpoint", "edit.safetensors", "--multiplier", "0.5,1", "--seed", "1..3", "--size", "1000x500")

    done = flux2("-p", "a", *options, "--steps", "10", "--dry-run")

    assert done.exit_code == 0, done.output
    assert "6 images in 2 jobs, 2 lists of adapters, 29.5 megapixel-steps" in done.stdout
    assert "to upload first: 1 checkpoint" in done.stdout
    assert [line.sweep_id for line in client.sweeps()] == before
    assert [path.name for path in tmp_path.iterdir()] == ["edit.safetensors"]


def test_files_of_two_runs_with_one_name_are_two_checkpoints(flux2, tmp_path):
    for run in ("a", "b"):
        (tmp_path / run).mkdir()
        shutil.copy(ADAPTERS / "edit.safetensors", tmp_path / run / "lora.safetensors")
    files = ("--checkpoint", "a=a/lora.safetensors", "--checkpoint")

    two = flux2("-p", "a", *files, "b=b/lora.safetensors", "--dry-run")
    twice = flux2("-p", "a", *files, "b=a/lora.safetensors", "--dry-run")

    assert two.exit_code == 0, two.output
    assert "2 images in 2 jobs" in two.stdout
    assert "checkpoints[1] is the same as checkpoints[0]" in twice.stderr


def test_a_sweep_that_is_too_large_is_refused_with_its_product(flux2):
    done = flux2("-p", "a", "--checkpoint", "neon.safetensors", "--multiplier", "0.5,1", "--seed", "1..3000")

    assert done.exit_code == 1
    assert "1 checkpoint x 2 multipliers x 1 prompt x 3000 seeds = 6,000 images; at most 5,000" in done.stderr
    assert "goes on" not in done.stderr


def test_a_terminal_asks_before_a_sweep_is_submitted(url, client, tmp_path):
    before = [line.sweep_id for line in client.sweeps()]
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "shared.cli", "sweep", "-p", "a", "--size", "64", "--url", url]
    with subprocess.Popen(
        command, cwd=tmp_path, stdin=follower, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        os.write(leader, b"n\n")
        shown, asked = process.communicate(timeout=60)
    os.close(leader)
    os.close(follower)

    assert process.returncode == 0
    assert "1 image in 1 job" in shown
    assert "Submit it?" in asked
    assert [line.sweep_id for line in client.sweeps()] == before


def test_an_interrupted_sweep_goes_on_and_can_be_watched_and_canceled(flux2, interrupted, client, url):
    sweep_id, messages = interrupted("-p", "a", "--seed", "1..8", *SLOW, "--output", "out")

    assert f"flux2 sweep watch {sweep_id} --output out --url {url}" in messages
    assert f"flux2 sweep cancel {sweep_id} --url {url}" in messages
    assert "Traceback" not in messages
    assert client.sweep_status(sweep_id).status in ("queued", "running")
    refused = flux2("-p", "another", "--output", "out")
    assert f"out holds the sweep {sweep_id}; choose another --output" in str(refused.exception)
    assert flux2("cancel", sweep_id).exit_code == 0
    watched = flux2("watch", sweep_id, "--output", "out")

    # No image was finished, and the files say so.
    assert watched.exit_code == 1
    assert {row["status"] for row in rows_of("out")} == {"canceled"}
    assert "canceled" in Path("out/index.html").read_text()


def test_whoever_interrupts_the_drawing_learns_how_to_go_on(flux2, url, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("flux2_client.sweeps.sweep_submission.write_outputs", interrupt)
        done = flux2("-p", "a", "--size", "64", "--steps", "1", "--output", "out")
    assert done.exit_code == 130
    sweep_id = done.stdout.split()[1].rstrip(":")
    command = f"flux2 sweep watch {sweep_id} --output out --url {url}"
    assert f"the sweep has ended. To write the files that show its images:  {command}" in done.stderr
    assert "cancel" not in done.stderr

    assert flux2("watch", sweep_id, "--output", "out").exit_code == 0
    assert len(rows_of("out")) == 1


def test_the_same_key_submits_once_and_finds_its_folder(flux2, tmp_path):
    options = ("-p", "a", "--size", "64", "--steps", "1", "--idempotency-key", "nightly", "--output", "out", "--json")

    first, second = flux2(*options), flux2(*options)

    assert (first.exit_code, second.exit_code) == (0, 0), first.output + second.output
    assert events(first)[0]["sweep_id"] == events(second)[0]["sweep_id"]


def test_options_before_a_command_and_a_sweep_that_nobody_knows_are_refused(flux2, url, tmp_path):
    misplaced = CliRunner().invoke(app, ["sweep", "--url", url, "list"])
    unknown = flux2("watch", "nothing", "--output", "out")
    unnamed = flux2("watch", "nothing")
    too_large = flux2("-p", "a", "--seed", "1..9000", "--output", "out")

    assert misplaced.exit_code == 2
    assert "--url has no effect before the command" in misplaced.output
    assert unknown.exit_code == 1
    assert "Sweep not found: nothing" in unknown.stderr
    assert "goes on" not in unknown.stderr
    assert (unnamed.exit_code, too_large.exit_code) == (1, 1)
    assert list(tmp_path.iterdir()) == []
