"""The texts of the `flux2` command's help."""

import re

import pytest
import typer.main

from shared.cli import app

COMMANDS = typer.main.get_command(app).commands


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_no_word_in_brackets_is_taken_for_markup(name):
    command = COMMANDS[name]
    texts = [command.help or "", *(parameter.help or "" for parameter in command.params)]

    # Rich drops such a word unless a backslash precedes it.
    assert [text for text in texts if re.search(r"(?<!\\)\[[a-z]", text)] == []
