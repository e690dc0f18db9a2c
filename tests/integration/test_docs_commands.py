"""Every command of the documentation runs against a real service, or is checked as far as this host can.

The service has a real Redis, the API and simulated slots; the pages of one test run in one folder, in their order. A
command that cannot run here has a reason below. Its options are parsed all the same: those of `flux2` by the command
itself, the targets of `make` by make, and the files that it names must exist.
"""

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from api_keys import add_key
from command_checks import check_segment, is_run
from documents import PAGES, ROOT, SHELLS, blocks, commands
from hub_server import HubServer
from huggingface_hub import constants
from PIL import Image
from served_api import serve
from typer.testing import CliRunner

from flux2_client.client import Client
from shared.catalog import find_model
from shared.cli import app
from shared.local.data_folder import write_settings
from shared.provenance.local_certificate import write_local_certificate
from shared.provenance.signer import open_signer
from shared.settings import ProvenanceSettings, Settings
from worker.model.demo_model import write_tiny_adapter

#: Endings that are right: the demonstration's files stand in for those of the text.
EXIT_CODES = {"flux2 inspect my_lora.safetensors --base flux2_klein_9b": 1}
LORAS = {
    "my_lora_job/my_lora.safetensors": "sks_robot",
    "robots/sks_robot.safetensors": "sks_robot",
    "my_edit/my_edit.safetensors": "edit",
    "tiny/edit.safetensors": "edit",
    "turbo.safetensors": "blueprint",
}
DEMO_ADAPTERS = ROOT / "worker/model/demo_checkpoint/adapters"
#: A command whose output goes into a file.
REDIRECTED = re.compile(r"(?P<command>flux2 [^<>|;&$]+) (?P<mode>>>?) (?P<file>[^ <>|;&$]+)")
WITH_PYTHON_BLOCKS = [page for page in PAGES if any(block.language == "python" for block in blocks(page))]
WITH_SHELL_BLOCKS = [page for page in PAGES if any(block.language in SHELLS for block in blocks(page))]


def page_id(page):
    return str(page.relative_to(ROOT))


def make_environment(folder, redis_url, hub, *, database):
    return {
        "FLUX2_REDIS_URL": f"{redis_url.rpartition('/')[0]}/{database}",
        "FLUX2_STORAGE_BACKEND": "directory",
        "FLUX2_STORAGE_DIRECTORY": str(folder / f"objects-{database}"),
        "FLUX2_ADAPTERS_ROOT": str(folder / "adapters"),
        "FLUX2_SOURCES_PRIVATE_HOSTS": hub.store_place,
        "FLUX2_SOURCES_CACHE_DIR": str(folder / "cache"),
        "HF_ENDPOINT": hub.url,
        "FLUX2_WORKER_LOCK_DIR": str(folder),
        "FLUX2_WORKER_NAME": "gpu",
        "FLUX2_WEBHOOK_SECRET": "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=",
    }


@contextmanager
def served_hub():
    """A hub on this host with the file of the examples; the hub's library in this process uses it too."""
    with HubServer() as hub, pytest.MonkeyPatch.context() as patch:
        hub.push("ann/robots", {"v2/robot.safetensors": (DEMO_ADAPTERS / "sks_robot.safetensors").read_bytes()})
        patch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield hub


@contextmanager
def running_slot(environment):
    command = [sys.executable, "-m", "shared.cli", "worker", "--simulate", "1", "--simulated-step-s", "0"]
    with subprocess.Popen(command, env={**os.environ, **environment}, stderr=subprocess.DEVNULL) as process:
        yield
        process.terminate()


@pytest.fixture(scope="module")
def services(tmp_path_factory, empty_redis_server, wait_until):
    """A service without keys and with a slot, and one with keys, whose environment has a key with every role."""
    folder = tmp_path_factory.mktemp("services")
    for name, source in LORAS.items():
        (folder / "adapters" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(DEMO_ADAPTERS / f"{source}.safetensors", folder / "adapters" / name)
    write_tiny_adapter(folder / "adapters/my_lora_job/flux2_klein_4b.safetensors", model=find_model("flux2_klein_4b"))
    with ExitStack() as stack:
        hub = stack.enter_context(served_hub())
        opened, locked = (make_environment(folder, empty_redis_server.url, hub, database=number) for number in (0, 1))
        stack.enter_context(running_slot(opened))
        for environment in (opened, locked):
            with pytest.MonkeyPatch.context() as patch:
                for name, value in environment.items():
                    patch.setenv(name, value)
                served = stack.enter_context(serve(Settings(_env_file=None), wait_until))
            environment["FLUX2_CLIENT_URL"] = served.url
        locked["FLUX2_API_KEY"] = add_key(served.ledger, roles=("admin", "submit", "read"))
        client = stack.enter_context(Client(opened["FLUX2_CLIENT_URL"]))
        job = client.submit({"model": "flux2", "prompts": [{"prompt": "a", "width": 64, "height": 64}], "loras": []})
        client.wait(job.request_id, timeout_s=60)
        write_signed_image(folder / "signed", client.result(job.request_id).images[0])
        yield SimpleNamespace(
            opened=opened,
            locked=locked,
            ledger=served.ledger,
            client=client,
            job=job.request_id,
            signed=folder / "signed",
        )


def write_training_run(name, samples):
    """Write what is left of a training run: its config, checkpoints, and the trainer's pictures of its samples."""
    process = {"model": {"arch": "flux2"}, "sample": {"width": 64, "height": 64, "seed": 42, "samples": samples}}
    folder = Path(f"output/{name}/samples")
    folder.mkdir(parents=True)
    for config in (Path(f"{name}.yaml"), folder.parent / "config.yaml"):
        config.write_text(yaml.safe_dump({"config": {"name": name, "process": [process]}}))
    for step, source in {"_000000250": "neon", "_000000500": "blueprint", "": "sks_robot"}.items():
        shutil.copyfile(DEMO_ADAPTERS / f"{source}.safetensors", folder.parent / f"{name}{step}.safetensors")
    for index in range(len(samples)):
        Image.new("RGB", (64, 64), "teal").save(folder / f"1700000000000__000000500_{index}.jpg")


def write_signed_image(folder, image):
    """Write an image as a worker with a certificate would have stored it, and the certificate of the authority."""
    made = write_local_certificate(folder, name="Studio Aal", days=1)
    made.authority.rename(folder / "authority.pem")
    signer = open_signer(ProvenanceSettings(certificate=made.certificate, key=made.key))
    media_type = f"image/{image.format}"
    signed = signer.sign(image.bytes(), media_type=media_type, model="flux2", has_references=False)
    (folder / "picture.png").write_bytes(signed)


@pytest.fixture
def folder(tmp_path, monkeypatch, services):
    """A folder with the files that the documentation names; it is no checkout, so that what is written stays in it."""
    work, home, bindir = (tmp_path / name for name in ("work", "home", "bin"))
    for new in (work, work / "adapters", work / ".flux2", home / "copied/control", bindir):
        new.mkdir(parents=True)
    monkeypatch.chdir(work)
    monkeypatch.setenv("HOME", str(home))
    (bindir / "flux2").symlink_to(Path(sys.executable).parent / "flux2")
    monkeypatch.setenv("PATH", f"{bindir}{os.pathsep}{os.environ['PATH']}")
    for name in ("photo.jpg", "house1.jpg", "demo-output/batch-2.png", f"{home}/copied/control/house1.jpg"):
        Path(name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (128, 96), "teal").save(name)
    for name, source in {"my_lora": "sks_robot", "robot": "neon"}.items():
        shutil.copyfile(DEMO_ADAPTERS / f"{source}.safetensors", f"{name}.safetensors")
    write_training_run("my_lora", [{"prompt": "[trigger] a photo"}, {"prompt": "a tree"}])
    write_training_run("my_edit", [{"prompt": "make it blue", "ctrl_img": f"{home}/copied/control/house1.jpg"}])
    Path("request.json").write_text('{"model": "flux2", "prompts": [{"prompt": "a"}], "loras": []}')
    Path("requests.jsonl").write_text(blocks(ROOT / "docs/batch-files.md")[0].text)
    for name in ("picture.png", "authority.pem"):
        shutil.copyfile(services.signed / name, name)
    # What `flux2 up` would leave here.
    write_settings(work / ".flux2", services.opened)
    return work


def expand(text):
    """Return the words of a command as the shell passes them, with the names of files in place of patterns."""
    if not re.search(r"[*~]", text):
        return shlex.split(text.replace("\\\n", " "), comments=True)
    return subprocess.check_output(["bash", "-c", f"printf '%s\\0' {text}"], text=True).split("\0")[:-1]


def run_here(text, environment):
    """Run a command of `flux2` in this process, which has imported everything."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        return CliRunner().invoke(app, expand(text)[1:])


def run(command, environment, names):
    text = command.text.replace(".venv/bin/flux2", "flux2")
    text = re.sub(r"\b(127\.0\.0\.1|localhost):8000\b", environment["FLUX2_CLIENT_URL"].removeprefix("http://"), text)
    for name, value in names.items():
        text = text.replace(name, value)
    [segment, *others] = command.segments()
    if segment[0] == "make":
        # Says what it would do.
        text = f"make --directory {ROOT} --dry-run {shlex.join(segment[1:])}"
    elif found := REDIRECTED.fullmatch(text):
        done = run_here(found["command"], environment)
        with Path(found["file"]).open("a" if found["mode"] == ">>" else "w") as file:
            file.write(done.stdout)
        return done.exit_code, done.output
    elif segment[0] == "flux2" and not others and not re.search(r"[$<>|]", text):
        done = run_here(text, environment)
        fault = repr(done.exception) if done.exception else ""
        return done.exit_code, f"{done.output}\n{fault}"
    script = f'curl() {{ command curl --fail-with-body --max-time 60 "$@"; }}\n{text}'
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout


@pytest.fixture(autouse=True)
def nothing_waits_afterwards(services):
    """Cancel what no slot renders, such as jobs for another model: `flux2 doctor` would report it."""
    yield
    for job in services.client.requests(status="queued"):
        services.client.cancel(job.request_id)


@pytest.fixture
def names(services, folder):
    """What stands in for the examples of the text: a finished job, the digest of a file, and an active key."""
    key = add_key(services.ledger, tenant="studio")
    return {
        "8f0c...": services.job,
        "5af74d065dae09b5fff3d3acc48390012d66422bedefccb56f0825cb7dec6062": hashlib.sha256(
            (folder / "my_lora.safetensors").read_bytes()
        ).hexdigest(),
        "3f0a9c21b7de": key.split("_")[1],
    }


@pytest.mark.parametrize("page", WITH_SHELL_BLOCKS, ids=page_id)
def test_every_command_of_a_page_runs_or_is_parsed(page, services, names, monkeypatch):
    for block in blocks(page):
        if block.language not in SHELLS:
            continue
        for command in commands(block):
            if is_run(command):
                is_locked = re.search(r"FLUX2_API_KEY|flux2 keys", command.text)
                environment = services.locked if is_locked else services.opened
                code, output = run(command, environment, names)
                assert code == EXIT_CODES.get(command.text, 0), f"{command.place}: {command.text}\n{output}"
            else:
                for segment in command.segments():
                    check_segment(segment, command.place, monkeypatch)


@pytest.mark.parametrize("page", WITH_PYTHON_BLOCKS, ids=page_id)
def test_every_program_of_a_page_runs(page, services, folder, monkeypatch, capsys):
    for name, value in services.opened.items():
        monkeypatch.setenv(name, value)
    for block in blocks(page):
        if block.language == "python":
            text = block.text.replace("http://127.0.0.1:8000", services.opened["FLUX2_CLIENT_URL"])
            exec(compile(text, block.place, "exec"), {"__name__": "__main__"})
            assert capsys.readouterr().out, f"{block.place} prints nothing"
