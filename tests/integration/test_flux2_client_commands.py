"""The client's commands against a served API whose jobs a thread finishes as workers do."""

import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from renderer_thread import Renderer
from typer.testing import CliRunner

from flux2_client.commands import app
from shared.local.ports import pick_free_port


@pytest.fixture
def renderer(api, finish):
    thread = Renderer(api, finish)
    thread.start()
    yield thread
    thread.stop()


@pytest.fixture
def flux2(api):
    """Run a command in this process; the result has `exit_code`, `stdout` and `stderr`."""

    def run(*arguments, stdin=None, url=api.url):
        return CliRunner().invoke(app, [*map(str, arguments), "--url", url], input=stdin)

    return run


def events(done):
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_one_command_submits_waits_and_saves_the_images(flux2, renderer, tmp_path):
    done = flux2(
        "submit", "-p", "a", "-p", "b", "--seed", "1..3", "--size", "64", "--output", tmp_path / "out", "--json"
    )

    assert done.exit_code == 0, done.stderr
    found = events(done)
    assert [found[0]["event"], found[-1]["event"]] == ["submitted", "ended"]
    saved = [event for event in found if event["event"] == "image"]
    assert sorted((event["prompt"], event["seed"]) for event in saved) == [(p, s) for p in "ab" for s in (1, 2, 3)]
    assert {event["file"] for event in saved} == {str(file) for file in (tmp_path / "out").iterdir()}
    for event in saved:
        data = Path(event["file"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == event["sha256"]


def test_a_pipe_gets_one_line_for_each_event(flux2, renderer, tmp_path):
    done = flux2("submit", "-p", "a", "--size", "64", "--output", tmp_path / "out", "--name", "{prompt}.{format}")

    words = [line.split()[0] for line in done.stdout.splitlines()]
    assert words[0] == "submitted"
    assert words[-1] == "succeeded"
    assert f"saved {tmp_path}/out/a.png" in done.stdout.splitlines()


def test_a_comparison_says_which_images_are_missing(flux2, renderer, tmp_path):
    options = ("--size", "64", "--a", "sample_steps=3", "--b", "sample_steps=2", "--output", tmp_path / "pages")

    done = flux2("compare", "-p", "a", "-p", "fail", *options)

    assert done.exit_code == 3
    assert "PSNR of 1 pair: median equal" in done.stdout
    page = (tmp_path / "pages" / "index.html").read_text()
    assert page.count("no image; it failed or was canceled") == 2
    assert page.count("<td>1 of 2</td>") == 2
    assert sorted(file.name for file in (tmp_path / "pages" / "images").iterdir()) == [
        "0001-a.png", "0001-b.png", "0001-difference.webp",
    ]  # fmt: skip


def test_prompts_beyond_the_apis_limit_become_several_jobs_with_the_same_seeds(serve_api, api, flux2, tmp_path, finish):
    small = api.settings.model_copy(update={"api": api.settings.api.model_copy(update={"max_prompts": 4})})
    (tmp_path / "prompts.txt").write_text("".join(f"prompt {number}\n" for number in range(10)))
    with serve_api(small) as served:
        thread = Renderer(served, finish)
        thread.start()
        done = flux2(
            *("submit", "--prompts", tmp_path / "prompts.txt", "--size", "64", "--output", tmp_path / "out", "--json"),
            url=served.url,
        )
        thread.stop()

    assert done.exit_code == 0, done.stderr
    found = events(done)
    assert [event["images"] for event in found if event["event"] == "submitted"] == [4, 4, 2]
    seeds = {event["prompt"]: event["seed"] for event in found if event["event"] == "image"}
    assert seeds == {f"prompt {number}": 42 + number for number in range(10)}


def test_images_that_the_api_stores_in_a_folder_of_this_host_are_saved(serve_api, api, flux2, finish, tmp_path):
    storage = api.settings.storage.model_copy(update={"backend": "directory", "directory": tmp_path / "objects"})
    with serve_api(api.settings.model_copy(update={"storage": storage})) as served:
        thread = Renderer(served, finish)
        thread.start()
        done = flux2("submit", "-p", "a", "--size", "64", "--output", tmp_path / "out", url=served.url)
        thread.stop()

    assert done.exit_code == 0, done.stderr
    [stored], [saved] = (tmp_path / "objects").rglob("*.png"), (tmp_path / "out").iterdir()
    assert saved.read_bytes() == stored.read_bytes()


@pytest.mark.parametrize(("prompts", "code"), [(["a", "fail"], 3), (["fail"], 1), (["a"], 0)])
def test_the_exit_code_says_whether_all_some_or_no_images_succeeded(flux2, renderer, prompts, code):
    options = [part for prompt in prompts for part in ("-p", prompt)]

    done = flux2("submit", *options, "--size", "64", "--wait")

    assert done.exit_code == code
    assert ("it broke" in done.stdout) == ("fail" in prompts)


def test_a_request_file_and_stdin_are_submitted_as_they_are(flux2, api, tmp_path):
    body = {"model": "flux2", "prompts": [{"prompt": "a", "width": 64, "height": 64}], "loras": []}
    (tmp_path / "request.json").write_text(json.dumps(body))

    (tmp_path / "windows.json").write_text(json.dumps(body), encoding="utf-8-sig")

    jobs = [
        events(flux2("submit", tmp_path / "request.json", "--json", "--idempotency-key", "k"))[0],
        events(flux2("submit", tmp_path / "windows.json", "--json", "--idempotency-key", "k"))[0],
        events(flux2("submit", "-", "--json", "--idempotency-key", "k", stdin=json.dumps(body)))[0],
    ]

    assert len({job["request_id"] for job in jobs}) == 1
    assert len(api.ledger.jobs(before=None, limit=9).jobs) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["submit"], "nothing to render"),
        (["submit", "-p", "a", "--size", "64x"], "is not a size"),
        (["submit", "-p", "a", "--seed", "x"], "is not a seed"),
        (["submit", "missing.json"], "No such file"),
        (["submit", "texts.json"], "has a prompt that is no JSON object"),
        (["submit", "request.json", "--seed", "1"], "a request file holds the whole request"),
        (["download", "1", "--name", "../{index}"], "must name a file below"),
        (["download", "1", "--name", "{prompt:04d}"], "is not a template"),
        (["submit", "--prompts", "latin.txt"], "latin.txt is not text in UTF-8"),
        (["status"], "Missing argument"),
    ],
)
def test_a_mistake_in_the_command_line_is_exit_code_2(flux2, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "latin.txt").write_bytes(b"B\xe4r")
    (tmp_path / "texts.json").write_text('{"model": "flux2", "prompts": ["a"], "loras": []}')

    done = flux2(*arguments)

    assert done.exit_code == 2
    # The box around the message folds it.
    assert message in " ".join(done.stderr.replace("│", " ").split())


def test_a_refusal_is_exit_code_1_and_an_address_without_an_api_4(flux2):
    refused = flux2("submit", "-p", "a", "--lora", "missing.safetensors")
    unknown = flux2("status", "../unknown")
    away = flux2("list", url=f"http://127.0.0.1:{pick_free_port()}")

    assert (refused.exit_code, unknown.exit_code, away.exit_code) == (1, 1, 4)
    assert "LORA_NOT_FOUND" in refused.stderr
    assert "not found" in unknown.stderr.lower()
    assert "cannot be reached" in away.stderr
    assert refused.stdout == unknown.stdout == away.stdout == ""


def test_jobs_are_listed_shown_downloaded_and_canceled(flux2, api, tmp_path, finish):
    jobs = [events(flux2("submit", "-p", "a", "-p", "b", "--size", "64", "--json"))[0]["request_id"] for _ in "ab"]
    canceled = flux2("cancel", jobs[1])
    thread = Renderer(api, finish)
    thread.start()
    waited = flux2("wait", jobs[0], "--json")
    thread.stop()

    first = flux2("download", jobs[0], "--output", tmp_path, "--json")
    (tmp_path / f"{jobs[0]}-0-42.png").write_bytes(b"something else")
    second = flux2("download", jobs[0], "--output", tmp_path)
    third = flux2("download", jobs[0], "--output", tmp_path, "--overwrite")

    assert [done.exit_code for done in (canceled, waited, first, second, third)] == [0, 0, 0, 3, 0]
    assert len([event for event in events(first) if event["event"] == "image"]) == 2
    assert "holds something else" in second.stderr
    assert "0 images finished" in canceled.stdout
    listed = {event["request_id"]: event for event in events(flux2("list", "--json"))}
    assert list(listed) == jobs[::-1]
    assert events(flux2("list", "--json", "--status", "succeeded"))[0]["request_id"] == jobs[0]
    assert listed[jobs[1]]["status"] == "canceled"
    assert events(flux2("status", jobs[0], "--json"))[0]["items"][0]["status"] == "succeeded"
    [result] = events(flux2("result", jobs[0], "--json"))
    assert result["outputs"]["images"][0]["url"].startswith("http")
    assert "2 of 2" in flux2("wait", jobs[0]).stdout
    assert flux2("result", jobs[0]).stdout.count("http") == 2
    assert jobs[0] in flux2("list").stdout
    assert "image 1" in flux2("status", jobs[0]).stdout


def test_a_name_that_is_too_long_is_an_error_of_its_image(flux2, renderer, tmp_path):
    done = flux2("submit", "-p", "a", "--size", "64", "--output", tmp_path, "--name", "{request_id}" * 8)

    assert done.exit_code == 3
    assert "File name too long; choose another folder or name" in done.stderr


def test_an_unknown_id_does_not_keep_the_other_jobs_from_being_canceled(flux2, api):
    [job] = events(flux2("submit", "-p", "a", "--size", "64", "--json"))

    done = flux2("cancel", "unknown", job["request_id"])

    assert done.exit_code == 1
    assert "REQUEST_NOT_FOUND" in done.stderr
    assert api.ledger.job(job["request_id"]).state == "canceled"


def test_what_json_cannot_hold_is_refused_without_a_traceback(flux2):
    done = flux2("submit", "-p", "a", "--lora", "a.safetensors@nan")

    assert done.exit_code == 1
    assert "the request cannot be sent as JSON" in done.stderr


def test_a_listing_without_lines_says_so_and_prints_no_json(flux2, api):
    jobs, adapters, as_json = flux2("list"), flux2("adapters"), flux2("list", "--json")

    assert [done.exit_code for done in (jobs, adapters, as_json)] == [0, 0, 0]
    assert [done.stdout for done in (jobs, adapters, as_json)] == ["", "", ""]
    assert jobs.stderr == "no such jobs\n"
    assert adapters.stderr == "no adapter files are under the API's FLUX2_ADAPTERS_ROOT, and none was uploaded\n"


@pytest.mark.parametrize(
    "command", [("wait", "nothing"), ("download", "nothing"), ("submit", "-p", "a", "--model", "no")]
)
def test_a_command_that_is_refused_leaves_no_folder(flux2, command, tmp_path):
    before = tmp_path / "before"
    before.mkdir()

    for output in (tmp_path / "new" / "out", before):
        refused = flux2(*command, "--output", output)
        assert (refused.exit_code, "NOT_FOUND" in refused.stderr) == (1, True)

    assert before.exists()
    assert not (tmp_path / "new").exists()


def test_a_comparison_and_a_replay_that_are_refused_leave_no_folder(flux2, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("no: config")

    compared = flux2("compare", "-p", "a", "--model", "no", "--b", "sample_steps=2", "--output", tmp_path / "pairs")
    replayed = flux2("replay", config, "--output", tmp_path / "samples")

    assert "MODEL_NOT_FOUND" in compared.stderr
    assert "INVALID_CONFIG" in str(replayed.exception)
    assert not (tmp_path / "pairs").exists()
    assert not (tmp_path / "samples").exists()


def test_a_command_whose_job_does_not_exist_does_not_say_how_to_go_on(flux2):
    unknown = flux2("wait", "unknown")

    assert unknown.exit_code == 1
    assert "flux2 wait" not in unknown.stderr


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_prompts_of_any_language_work_in_a_terminal_of_any_encoding(api, renderer, tmp_path, encoding):
    command = [sys.executable, "-m", "shared.cli", "submit", "-p", "ein B\N{LATIN SMALL LETTER A WITH DIAERESIS}r"]
    options = ["--size", "64", "--output", "out", "--name", "{prompt}.png", "--url", api.url]
    environment = {
        **os.environ,
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONIOENCODING": encoding,
    }

    done = subprocess.run([*command, *options], cwd=tmp_path, env=environment, capture_output=True, check=False)

    assert done.returncode == 0, done.stderr
    [job] = api.ledger.jobs(before=None, limit=9).jobs
    [item] = api.ledger.job(job.job_id).items
    assert item.spec.prompt == "ein B\N{LATIN SMALL LETTER A WITH DIAERESIS}r"
    assert len(list((tmp_path / "out").iterdir())) == 1


def test_adapters_are_listed_and_described(flux2, adapter_root, goldens):
    data = (goldens / "adapters" / "lora_r4_bf16.safetensors").read_bytes()
    (adapter_root / "a.safetensors").write_bytes(data)
    (adapter_root / "b.safetensors").write_bytes(b"no adapter")

    assert [event["path"] for event in events(flux2("adapters", "--json"))] == ["a.safetensors", "b.safetensors"]
    assert "a.safetensors" in flux2("adapters").stdout
    good, bad = flux2("adapters", "a.safetensors"), flux2("adapters", "b.safetensors", "--json")

    assert (good.exit_code, bad.exit_code) == (0, 1)
    assert "lora" in good.stdout
    assert "INVALID_LORA" in bad.stderr


def test_an_interrupted_command_leaves_its_jobs_running_and_says_how_to_go_on(api, tmp_path):
    command = [sys.executable, "-m", "shared.cli", "submit", "-p", "a", "--size", "64", "--output", "out"]
    with subprocess.Popen(
        [*command, "--url", api.url],
        cwd=tmp_path,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts what it runs in the background without this signal, and the tests may run there.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        submitted, polled = process.stdout.readline(), process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, messages = process.communicate(timeout=30)

    request_id = submitted.split()[1].rstrip(":")
    assert polled.startswith("in_queue")
    assert process.returncode == 130
    assert f"flux2 wait {request_id} --output out --url {api.url}" in messages
    assert f"flux2 cancel {request_id}" in messages
    assert "Traceback" not in messages
    assert api.ledger.job(request_id).state == "queued"


def blocks(language):
    text = (Path(__file__).parents[2] / "docs" / "client.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("code", blocks("python"))
def test_the_documented_python_examples_run(api, renderer, tmp_path, monkeypatch, capsys, code):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (1400, 900)).save("photo.jpg")

    exec(compile(code.replace("http://127.0.0.1:8000", api.url), "client.md", "exec"), {"__name__": "example"})

    assert capsys.readouterr().out


@pytest.mark.parametrize("line", [line for block in blocks("console") for line in block.splitlines()])
def test_the_documented_commands_run(flux2, renderer, goldens, tmp_path, monkeypatch, line):
    monkeypatch.chdir(tmp_path)
    shutil.copy(goldens / "adapters" / "lora_r4_bf16.safetensors", "robot.safetensors")
    Image.new("RGB", (1400, 900)).save("photo.jpg")
    dollar, name, *arguments = shlex.split(line)

    assert (dollar, name) == ("$", "flux2")
    assert flux2(*arguments).exit_code == 0
