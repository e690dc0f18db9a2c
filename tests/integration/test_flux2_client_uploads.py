"""`flux2 adapters push`, `list` and `rm`, and the clients' methods behind them, against a served API."""

import hashlib
import json
import shutil

import anyio
import pytest
from typer.testing import CliRunner

from flux2_client import AsyncClient, Client
from flux2_client.adapter_commands import upload_name
from flux2_client.commands import app
from flux2_client.file_body import FileBody
from shared.errors import ApiError, UploadRefused

LORA = "lora_r4_bf16.safetensors"


@pytest.fixture
def flux2(api):
    """Run a command in this process; the result has `exit_code`, `stdout` and `stderr`."""

    def run(*arguments):
        return CliRunner().invoke(app, [*map(str, arguments), "--url", api.url])

    return run


@pytest.fixture
def lora(goldens, tmp_path):
    return shutil.copy(goldens / "adapters" / LORA, tmp_path / "my robot.safetensors")


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_pushed_file_is_named_by_what_the_command_prints(flux2, lora):
    pushed = flux2("adapters", "push", lora)
    path = pushed.stdout.strip()

    assert (pushed.exit_code, path) == (0, f"upload:my-robot@{sha256(lora)}"), pushed.stderr
    assert flux2("submit", "-p", "a cat", "--lora", path, "--lora", f"{path}@0.5").exit_code == 0
    assert path in flux2("adapters").stdout
    assert path in flux2("adapters", "list").stdout
    assert "lora" in flux2("adapters", path).stdout


def test_answers_are_json_on_request(flux2, lora):
    pushed = json.loads(flux2("adapters", "push", lora, "--name", "robot", "--json").stdout)
    again = json.loads(flux2("adapters", "push", lora, "--name", "robot", "--json").stdout)
    [listed] = map(json.loads, flux2("adapters", "list", "--json").stdout.splitlines())
    deleted = json.loads(flux2("adapters", "rm", "robot", "--json").stdout)

    assert pushed["path"] == again["path"] == listed["path"] == f"upload:robot@{sha256(lora)}"
    assert (pushed["kind"], listed["sha256"]) == ("lora", sha256(lora))
    assert deleted == {"deleted": [pushed["path"]]}


def test_an_upload_that_a_job_needs_is_not_removed(flux2, lora):
    path = flux2("adapters", "push", lora).stdout.strip()
    flux2("submit", "-p", "a cat", "--lora", path)

    kept, unknown = flux2("adapters", "rm", path), flux2("adapters", "rm", "none")

    assert (kept.exit_code, unknown.exit_code) == (1, 1)
    assert kept.stderr.startswith("UPLOAD_IN_USE: 1 job that has not ended uses 'my-robot'")
    assert unknown.stderr.startswith("UPLOAD_NOT_FOUND: no upload is named 'none'")


def test_an_empty_version_deletes_nothing_nor_do_the_names_before_it(flux2, lora):
    path = flux2("adapters", "push", lora, "--name", "robot").stdout.strip()
    flux2("adapters", "push", lora, "--name", "other")

    refused = flux2("adapters", "rm", "other", "robot@")

    assert refused.exit_code == 2
    assert "'upload:robot@' must have the 64 hexadecimal digits" in " ".join(refused.stderr.replace("│", " ").split())
    assert len(flux2("adapters", "list", "--json").stdout.splitlines()) == 2
    assert flux2("adapters", "rm", path, "other").stdout.count("deleted upload:") == 2
    assert flux2("adapters", "list", "--json").stdout == ""


def test_several_files_are_pushed_under_their_own_names(flux2, lora, tmp_path):
    second = shutil.copy(lora, tmp_path / "second.safetensors")

    pushed = flux2("adapters", "push", lora, second)
    one_name = flux2("adapters", "push", lora, second, "--name", "robot")

    assert pushed.stdout.split() == [f"upload:my-robot@{sha256(lora)}", f"upload:second@{sha256(lora)}"], pushed.stderr
    assert (one_name.exit_code, one_name.stdout) == (2, "")


@pytest.mark.parametrize("name", ["", "..", "a b/c", "-x", "x" * 129, "x\n"])
def test_a_name_that_no_upload_can_have_is_refused_before_anything_is_sent(lora, name):
    with Client("http://127.0.0.1:1") as client:
        for call in (lambda: client.upload_adapter(lora, name=name), lambda: client.delete_adapter(name)):
            with pytest.raises(ApiError, match="cannot name an upload"):
                call()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"<!DOCTYPE html><html>", "INVALID_LORA: robot: not a safetensors file; this is"),
    ],
)
def test_what_cannot_be_pushed_is_refused_in_one_sentence(flux2, tmp_path, content, message):
    if content is not None:
        (tmp_path / "robot.safetensors").write_bytes(content)

    refused = flux2("adapters", "push", tmp_path / "robot.safetensors")

    assert refused.exit_code == 1
    assert message in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_a_peft_folder_whose_config_decides_the_strength_is_not_pushed_without_it(flux2, goldens, tmp_path):
    folder = tmp_path / "robot"
    folder.mkdir()
    shutil.copy(goldens / "adapters" / LORA, folder / "adapter_model.safetensors")
    config = folder / "adapter_config.json"
    config.write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8}))

    refused = flux2("adapters", "push", folder / "adapter_model.safetensors")
    config.write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 4}))
    pushed = flux2("adapters", "push", folder / "adapter_model.safetensors")

    assert refused.exit_code == 1
    assert "flux2 convert" in refused.stderr
    assert (pushed.exit_code, pushed.stdout.partition("@")[0]) == (0, "upload:robot"), pushed.stderr


def test_a_submit_that_names_a_file_of_this_host_says_how_to_push_it(flux2, lora):
    refused = flux2("submit", "-p", "a cat", "--lora", lora)

    assert refused.exit_code == 1
    assert f"flux2 adapters push '{lora}'" in refused.stderr


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("a/my_lora-v2.safetensors", "my_lora-v2"),
        ("a/.hidden.safetensors", "hidden"),
        ("a/ä b.safetensors", "b"),
        ("robot/adapter_model.safetensors", "robot"),
        ("a/" + "x" * 200, "x" * 128),
    ],
)
def test_an_upload_has_the_name_of_its_file(tmp_path, file, name):
    assert upload_name(tmp_path / file) == name


def test_both_clients_upload_and_delete(api, lora):
    sent = []
    body = FileBody(lora, lora.stat().st_size, sha256(lora), sent.append)

    async def upload():
        async with AsyncClient(api.url) as client:
            return await client.upload_adapter(body, name="robot"), await client.delete_adapter("robot")

    with Client(api.url) as client:
        first = client.upload_adapter(lora, name="robot")
        assert [file.path for file in client.adapters()] == [first.path]
        assert client.adapter(first.path).refused is None
        assert client.delete_adapter("robot", sha256=sha256(lora)).deleted == (first.path,)
        with pytest.raises(ApiError, match="UPLOAD_NOT_FOUND"):
            client.delete_adapter("robot")
        with pytest.raises(ApiError, match="cannot name an upload"):
            client.upload_adapter(lora, name="a b")

    second, deleted = anyio.run(upload)
    assert second.path == first.path
    assert deleted.deleted == (first.path,)
    assert sent[-1] == lora.stat().st_size


def test_a_file_that_changes_while_it_is_sent_is_refused(api, lora):
    body = FileBody(lora, lora.stat().st_size, sha256(lora))
    longer = lora.read_bytes() + b"x"
    lora.write_bytes(longer)

    with Client(api.url) as client:
        with pytest.raises(UploadRefused, match="changed while it was sent"):
            client.upload_adapter(body, name="robot")
        lora.write_bytes(bytes([longer[0] ^ 1]) + longer[1:-1])
        with pytest.raises(ApiError):
            client.upload_adapter(body, name="robot")
        assert list(client.adapters()) == []


def test_an_upload_is_repeated_from_its_beginning_when_the_api_is_busy(api, lora, wait_until):
    errors = []
    slots = api.services.upload_slots
    slots._free = 0

    def free(error):
        errors.append(error.status)
        slots._free = 4

    with Client(api.url, on_failure=free) as client:
        stored = client.upload_adapter(lora, name="robot")

    assert (errors, stored.sha256) == ([503], sha256(lora))
