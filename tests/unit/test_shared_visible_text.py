"""No text of other people commands a terminal, or forges a line of a log."""

import io
import json
import logging
import sys
import threading
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared import cli
from shared.console import LineConsole
from shared.local.start_display import StartDisplay
from shared.visible_text import escape_block, escape_controls

FORGED = "2026-01-01T00:00:00Z [error    ] all keys were revoked"
HOSTILE = f"a\r\n{FORGED}\x1b[2J\x1b]0;title\x07\x9b31m\u202egnp.exe\u2066\u2028\x7f\ud800\u200b\U000e0041"
#: Every kind of character that must not reach a terminal as it is; a line break is looked at apart.
COMMANDS = set(HOSTILE) - set(map(chr, range(32, 127))) - {"\n"}
#: A text with none of the characters because of which the log puts a value into quotes.
BARE = "".join(sorted(COMMANDS - {"\r"}))


def is_command(char):
    """Whether a character commands a terminal or is invisible, by Unicode's own tables."""
    joins_letters = char in "\u200c\u200d"
    # Marks that scripts need, as the Arabic number sign and the soft hyphen, are no commands.
    harmless = joins_letters or char in "\u00ad\u180e" or 0x0600 <= ord(char) <= 0x0605 or ord(char) in FORMAT_MARKS
    return unicodedata.category(char) in ("Cc", "Zl", "Zp", "Cs") or (
        unicodedata.category(char) == "Cf" and not harmless
    )


FORMAT_MARKS = {0x06DD, 0x070F, 0x0890, 0x0891, 0x08E2, 0x110BD, 0x110CD, *range(0x13430, 0x13440)} | {
    *range(0x1BCA0, 0x1BCA4),
    *range(0x1D173, 0x1D17B),
}


def test_every_command_character_of_unicode_is_escaped_and_every_letter_stays():
    letters = []
    # Above it are private use, and the tags and selectors of the next plane.
    for code in (*range(0x20000), *range(0xE0000, 0xE0200)):
        char = chr(code)
        if unicodedata.category(char)[0] in "LMNPS":
            letters.append(char)
        elif is_command(char):
            shown = escape_controls(char)
            assert shown.isascii(), hex(code)
            assert shown.isprintable(), hex(code)
    assert escape_controls("".join(letters)) == "".join(letters)


@pytest.mark.parametrize("text", ["ein Fuchs, größer", "ثعلب أحمر", "赤い狐", "👩‍🚀 🏴 e\u0301", "C:\\x", ""])
def test_text_that_people_write_stays_as_it_is(text):
    assert escape_controls(text) == text


def test_the_escapes_are_pythons():
    assert escape_controls("\r\n\t\x1b\x9b\u202e\U000e0041") == r"\r\n\t\x1b\x9b\u202e\U000e0041"


@settings(max_examples=40)
@given(st.text(st.characters(categories=["Cc", "Cf", "Zl", "Zp", "Lo"])))
def test_an_escaped_text_is_one_line_and_is_not_escaped_again(text):
    shown = escape_controls(text)

    assert len(shown.splitlines()) <= 1
    assert escape_controls(shown) == shown


def test_lines_of_a_block_are_indented_after_the_first():
    assert escape_block("one\ntwo\x1b\nthree", indent="  ") == "one\n  two\\x1b\n  three"


def log_everywhere(logger):
    """Log the hostile text as a value, in values, in a message, and in an error with a cause."""
    logger.warning("a value", extra={"prompt": HOSTILE, "paths": [HOSTILE], "names": {HOSTILE: 1}, "file": BARE})
    logging.getLogger("library").warning("text of a library: %s", HOSTILE)
    try:
        try:
            raise KeyError(HOSTILE)
        except KeyError as cause:
            raise ValueError(HOSTILE) from cause
    except ValueError:
        logger.exception("an error")


def test_a_log_for_people_holds_no_control_character_and_no_forged_line(configured):
    written = configured("console", log_everywhere)

    assert not COMMANDS & set(written)
    records = [line for line in written.split("\n") if line and not line.startswith(" ")]
    assert len(records) == 3
    assert f"file={BARE!r}" in records[0]
    assert all(line.startswith("20") and FORGED not in line.partition("] ")[0] for line in records)
    # The traceback is whole, with the error's own lines below it.
    assert "    Traceback (most recent call last):\n" in written
    assert "\n    ValueError: a\\r\n    " + FORGED in written


def test_a_json_log_is_one_object_per_line_with_the_text_as_it_was(configured):
    written = configured("json", log_everywhere)

    assert not COMMANDS & set(written)
    value, library, error = (json.loads(line) for line in written.splitlines())
    assert (value["prompt"], value["file"]) == (HOSTILE, BARE)
    assert library["event"].endswith(HOSTILE)
    assert HOSTILE in error["exception"]


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_an_error_that_ends_a_process_or_a_thread_is_a_record_of_the_log(configured, log_format):
    error = ValueError(HOSTILE)

    def end(_logger):
        sys.excepthook(ValueError, error, None)
        thread = threading.Thread(target=fail, args=[error], name="flux2-courier")
        thread.start()
        thread.join()

    written = configured(log_format, end)

    assert not COMMANDS & set(written)
    records = [line for line in written.split("\n") if line and not line.startswith(" ")]
    assert len(records) == 2
    assert "the process ends with an unexpected error" in records[0]
    assert "flux2-courier" in records[1]


def fail(error):
    raise error


def test_ctrl_c_ends_a_process_as_python_says_it(configured):
    written = configured("json", lambda _: sys.excepthook(KeyboardInterrupt, KeyboardInterrupt(), None))

    assert "KeyboardInterrupt" in written
    assert not written.startswith("{")


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_console_shows_hostile_cells_and_lines_escaped(is_terminal):
    written = io.StringIO()
    console = LineConsole(file=written, force_terminal=is_terminal, color_system=None, width=400)

    console.print_line(HOSTILE)
    console.print_rows([("image 0", HOSTILE), ("b", "[red]c[/red]")], styles=["", ""])
    console.print_aligned([(HOSTILE, "x")])

    lines = written.getvalue().splitlines()
    assert not COMMANDS & set(written.getvalue())
    assert len(lines) == 4
    assert "[red]c[/red]" in lines[2]


def test_the_start_of_a_stack_shows_a_hostile_line_of_a_process_log_escaped():
    written = io.StringIO()
    console = LineConsole(file=written, force_terminal=False, width=200)
    line = json.dumps({"event": HOSTILE, "level": "info", "detail": HOSTILE})

    with StartDisplay(console) as display:
        display.show("worker-0 loads the model", "")
        display._line_s -= 60
        display.show("worker-0 loads the model", line)

    assert not COMMANDS & set(written.getvalue())
    assert len(written.getvalue().splitlines()) == 2


def test_a_message_of_a_command_is_escaped_and_keeps_its_lines(capsys):
    cli._print_error(f"worker-0 ended with status 1:\n{HOSTILE}", style="red")

    written = capsys.readouterr().err
    assert not COMMANDS & set(written)
    assert [line[:2] for line in written.splitlines()] == ["wo", "  ", "  "]
