"""The command line as a person uses it."""

import hashlib
import json
import subprocess
import sys

import pytest

from shared.catalog import MODELS
from shared.local.redis_server import RedisServer
from worker.model.demo_model import write_tiny_checkpoint


def flux2(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "shared.cli", *arguments],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "COLUMNS": "200", **environment},
        check=False,
    )


def test_help_lists_the_commands_of_both_sides():
    done = flux2("--help")

    assert done.returncode == 0
    for command in ("up", "demo", "api", "worker", "tiny"):
        assert command in done.stdout


@pytest.mark.parametrize("command", ["api", "worker", "up"])
def test_a_wrong_setting_is_one_line_that_names_the_variable(command):
    done = flux2(command, FLUX2_QUEUE_LEASE_TTL_S="soon")

    assert done.returncode == 1
    assert "FLUX2_QUEUE_LEASE_TTL_S" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "variables", "said"),
    [
        (("worker", "--device", "banana"), {}, "unknown device 'banana'; use auto, auto:N, cuda, cuda:N or cpu"),
        (("api",), {"FLUX2_S3_ENDPOINT_URL": "s3.example.com"}, "FLUX2_S3_ENDPOINT_URL: 's3.example.com' is not a URL"),
        (
            ("worker",),
            {"FLUX2_QUEUE_RENEW_S": "10"},
            "FLUX2_QUEUE_RENEW_S 10 is more than a third of FLUX2_QUEUE_LEASE",
        ),
        (("demo", "--output", "/proc/x"), {}, "/proc/x: No such file or directory"),
        (("doctor",), {"FLUX2_REDIS_URL": "10.0.0.5:6379"}, "FLUX2_REDIS_URL: Redis URL must specify"),
        (
            ("api",),
            {"FLUX2_REDIS_URL": "redis://:word@h?socket_timeout=3"},
            "FLUX2_REDIS_URL: the option socket_timeout does not work for both the ledger and Celery; set FLUX2_REDIS",
        ),
        (
            ("worker", "--device", "cpu"),
            {"FLUX2_WORKER_LOCK_DIR": "/proc/x"},
            "FLUX2_WORKER_LOCK_DIR /proc/x cannot hold locks: No such",
        ),
        (("replay", "{folder}/binary"), {}, "/binary is not text in UTF-8: invalid start byte at byte 0"),
        (("render", "{folder}/binary"), {}, "the request: Invalid JSON"),
        (
            ("tiny", "/proc/x"),
            {},
            "cannot write /proc/x/flux2-dev.safetensors: No such file or directory; choose another",
        ),
        (("tiny", "{folder}/binary/x"), {}, "binary/x/flux2-dev.safetensors: Not a directory; choose another folder"),
        (("worker",), {"FLUX2_MODEL_PATH": "~/nothing"}, "FLUX2_MODEL_PATH /"),
        (("worker",), {"HF_HUB_OFFLINE": "1", "HF_HOME": "{folder}"}, "not in the hub's cache, while HF_HUB_OFFLINE"),
    ],
)
def test_an_error_that_a_person_can_fix_is_one_line(arguments, variables, said, tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\xd8bad")

    variables = {name: value.format(folder=tmp_path) for name, value in variables.items()}
    done = flux2(*(part.format(folder=tmp_path) for part in arguments), **variables)

    assert done.returncode == 1
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "served", "found"),
    [
        (("worker", "--device", "cpu"), "flux2_klein_4b", "flux2_klein_4b_distilled"),
        (("worker", "--device", "cpu"), "flux2_klein_4b_distilled", "flux2_klein_4b"),
        (("render", "{folder}/request.json", "--output", "{folder}/out"), "flux2_klein_4b", "flux2_klein_4b_distilled"),
        (("render", "{folder}/request.json", "--output", "{folder}/out"), "flux2_klein_4b_distilled", "flux2_klein_4b"),
        (("up", "--data", "{folder}/data", "--model", "{served}"), "flux2_klein_4b", "flux2_klein_4b_distilled"),
        (("up", "--data", "{folder}/data"), "flux2_klein_4b_distilled", "flux2_klein_4b"),
    ],
)
def test_the_checkpoint_of_another_model_ends_the_start_with_one_line(arguments, served, found, tmp_path):
    write_tiny_checkpoint(tmp_path / "klein", MODELS[found])
    body = {"model": served, "prompts": [{"prompt": "x", "width": 64, "height": 64}], "loras": []}
    (tmp_path / "request.json").write_text(json.dumps(body))

    done = flux2(
        *(part.format(folder=tmp_path, served=served) for part in arguments),
        FLUX2_MODEL_PATH=str(tmp_path / "klein"),
        FLUX2_MODEL_TEXT_ENCODER=str(tmp_path / "klein" / "text_encoder"),
        **({} if "--model" in arguments else {"FLUX2_MODEL_ID": served}),
    )

    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    file = MODELS[found].transformer_file
    assert f"FLUX2_MODEL_PATH {tmp_path}/klein holds {file}, so it is {found}, not {served}; set FLUX2_MODEL_ID" in line


def test_a_port_in_use_is_one_line_that_names_the_option(redis_server):
    done = flux2("api", "--port", str(redis_server.port))

    assert done.stderr.splitlines() == [
        f"the API: port {redis_server.port} on 127.0.0.1 is in use; choose another with --port or FLUX2_API_PORT"
    ]


def test_piped_rows_are_whole_at_any_width_of_the_terminal(goldens):
    adapter = next(goldens.glob("adapters/*.safetensors"))

    done = flux2("inspect", str(adapter), COLUMNS="40")

    sha256 = hashlib.sha256(adapter.read_bytes()).hexdigest()
    assert f"sha256              {sha256}" in done.stdout.splitlines()


def test_a_binary_dotenv_file_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_bytes(b"FLUX2_QUEUE_CAP=\xff\n")

    done = flux2("doctor")

    assert done.stderr.splitlines() == [".env is not UTF-8 text: invalid start byte at byte 16; save it as UTF-8"]


def test_an_unknown_setting_is_named_with_the_one_that_was_meant():
    misspelt = flux2("inspect", "no-such-file", FLUX2_MODEL_PRECISON="qfloat8")
    cut = flux2("doctor", FLUX2_REDIS="redis://127.0.0.1")

    assert misspelt.stderr.splitlines()[0] == (
        "unknown setting FLUX2_MODEL_PRECISON is ignored; did you mean FLUX2_MODEL_PRECISION?"
    )
    assert cut.stderr.splitlines()[-1].endswith("settings are named FLUX2_<SECTION>_<NAME>")
    assert len(cut.stderr.splitlines()) == 2


def test_a_worker_without_redis_says_so_before_it_loads_anything():
    done = flux2("worker", "--device", "cpu", FLUX2_REDIS_URL="redis://127.0.0.1:1/0")

    assert done.returncode == 1
    assert "Redis did not answer" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        (["-ping"], "has no permissions to run the 'ping' command"),
        (["-evalsha"], "it may not run 'evalsha'"),
        (["-zadd", "-hset"], "it may not run 'hset', 'zadd'"),
    ],
)
def test_a_worker_that_redis_refuses_says_what_it_may_not_do(redis_client, redis_url, rules, words):
    redis_client.acl_setuser("limited", enabled=True, passwords=["+pw"], keys=["*"], commands=["+@all", *rules])
    try:
        done = flux2("worker", "--device", "cpu", FLUX2_REDIS_URL=redis_url.replace("redis://", "redis://limited:pw@"))
    finally:
        redis_client.acl_deluser("limited")

    assert done.returncode == 1
    assert "Redis refuses this user: " in done.stderr
    assert words in done.stderr
    assert "allow it with ACL SETUSER" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_missing_checkpoint_is_one_line_that_names_it(tmp_path):
    missing = tmp_path / "no-such-model"

    with RedisServer(tmp_path) as redis:
        done = flux2(
            "worker",
            "--device",
            "cpu",
            FLUX2_MODEL_PATH=str(missing),
            FLUX2_STORAGE_BACKEND="directory",
            FLUX2_STORAGE_DIRECTORY=str(tmp_path / "objects"),
            **redis.environment(),
        )

    assert done.returncode == 1
    assert str(missing) in done.stderr
    assert "Traceback" not in done.stderr
