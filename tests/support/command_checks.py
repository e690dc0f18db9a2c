"""Check a documented command that cannot run on this host: its options, and the files that it names."""

import ast
import re
import shlex
import tomllib

import pytest
import typer
import typer.main
from documents import ROOT

from shared.cli import app

CLI = typer.main.get_command(app)
SERVES = "serves until it is interrupted; the service of the test is one"
#: Commands of `flux2` that do not run here, and why.
NOT_RUN = {
    "up": "starts a Redis, an S3 and workers of its own; tests/e2e/test_commands.py runs it",
    "demo": "starts a service of its own; tests/e2e/test_commands.py runs it",
    "render": "loads a model; tests/integration/test_render_command.py runs it",
    "verify": "computes for half a minute; tests/unit/test_worker_verify.py runs its cases",
    "api": SERVES,
    "mcp": SERVES,
    "worker": SERVES,
    "top": "shows the fleet until q is pressed; with --once it runs",
}
#: Other programs that do not run here, and why.
FOREIGN = {
    "claude": "needs Claude Code",
    "docker": "needs Docker",
    "git": "needs another host",
    "hf": "downloads a model",
    "kubectl": "needs a cluster",
    "ln": "needs the folder of another program",
    "pip": "installs packages",
    "python": "measures for minutes",
    "ssh": "needs another host",
    "systemctl": "needs root",
}


def is_run(command):
    """Whether a command runs here: each of its programs must."""
    return not any(
        program in FOREIGN or (program == "flux2" and _goes_on(words)) for program, *words in command.segments()
    )


def _goes_on(words):
    return words[0] in NOT_RUN and "--once" not in words


def find_command(words):
    """Return a command of `flux2` and the number of words that name it."""
    command, count = CLI, 0
    while isinstance(getattr(command, "commands", None), dict) and words[count : count + 1]:
        inner = command.commands.get(words[count])
        if inner is None:
            break
        command, count = inner, count + 1
    return command, count


def parse_flux2(words, place, monkeypatch):
    """Let `flux2` parse words, without running the command."""
    command, _ = find_command(words)
    monkeypatch.setattr(command, "callback", lambda **_: None)
    try:
        CLI.main(list(words), prog_name="flux2", standalone_mode=False)
    except typer.TyperException as error:
        pytest.fail(f"{place}: flux2 {shlex.join(words)}: {error.format_message()}")


def check_names(words, place):
    """Require that the command and each option exist that words in a sentence name; they may be a part of it."""
    command, count = find_command(words)
    assert count or words[0].startswith("-"), f"{place}: there is no command {words[0]}"
    if command.params:
        known = {"--help", *(name for parameter in command.params for name in parameter.opts)}
        options = {word.partition("=")[0] for word in words[count:] if re.match("--?[a-z]", word)}
        assert options <= known, f"{place}: flux2 {' '.join(words)} has no {options - known}"


def check_files(words, place):
    """Require that the files and folders of the repository that a command names exist."""
    for word in (word.removeprefix("$PWD/") for word in words):
        if re.match(r"(deploy|tests|benchmarks|tools|examples|integrations)/", word):
            assert (ROOT / word).exists(), f"{place}: {word} does not exist"


def check_python(words, place):
    """Require that a module exists and that its `main` has the options; an import of torch would take seconds."""
    assert words[0] == "-m", place
    folder = ROOT / words[1].replace(".", "/")
    file = folder / "__main__.py" if folder.is_dir() else folder.with_suffix(".py")
    [main] = [
        node for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef) and node.name == "main"
    ]
    known = {f"--{argument.arg.replace('_', '-')}" for argument in main.args.args}
    for node in ast.walk(main):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("-"):
            known |= set(node.value.split("/"))
    options = {word.partition("=")[0] for word in words[2:] if word.startswith("-")}
    assert options <= known, f"{place}: {words[1]} has no {options - known}"


def check_pip(words, place):
    """Require that the locked dependencies and the extras of an installation exist."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = [name for word in words for name in re.findall(r"^\.\[(.*)\]$", word)]
    for extra in ",".join(named).split(",") if named else []:
        assert extra in extras, f"{place}: pyproject.toml has no extra {extra}"
    if "-c" in words:
        assert (ROOT / words[words.index("-c") + 1]).is_file(), place


def check_segment(segment, place, monkeypatch):
    program, *words = segment
    check_files(words, place)
    if inner := "flux2" in words and "--" in words:
        # In a container.
        words = words[words.index("--") + 2 :]
    if inner or program == "flux2":
        parse_flux2(words, place, monkeypatch)
    elif program == "python":
        check_python(words, place)
    elif program == "pip":
        check_pip(words, place)
