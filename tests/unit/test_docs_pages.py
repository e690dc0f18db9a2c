"""What the pages of the documentation say by themselves is sound: their data, and the commands in their sentences."""

import json
import re
import tomllib

import pytest
import yaml
from command_checks import check_files, check_names, check_python
from documents import PAGES, ROOT, SHELLS, blocks, inline_commands

from api.schemas.sweep import SweepRequest
from flux2_client.batch.line_reader import RawLine
from flux2_client.batch.request_line import RequestLine, parse_line
from shared.request import InferenceRequest, LoraItem


def page_id(page):
    return str(page.relative_to(ROOT))


def test_every_block_has_a_language():
    known = {*SHELLS, "python", "json", "yaml", "toml", "ini", "text", "mermaid"}

    assert {
        block.place: block.language for page in PAGES for block in blocks(page) if block.language not in known
    } == {}


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_data_in_a_page_is_sound_and_each_request_fits_its_schema(page):
    for block in blocks(page):
        if block.language == "yaml":
            # Events alone: a part of a file may name an anchor of the rest.
            list(yaml.parse(block.text))
        elif block.language == "toml":
            tomllib.loads(block.text)
        elif block.language == "json":
            for data in read_json(block.text):
                if "checkpoints" in data:
                    SweepRequest.model_validate(data)
                elif "prompts" in data:
                    InferenceRequest.model_validate(data)
                elif "body" in data:
                    assert isinstance(parse_line(RawLine(1, json.dumps(data).encode())), RequestLine), block.place
                elif "path" in data and not {"event", "size_bytes"} & data.keys():
                    LoraItem.model_validate(data)


def test_the_answer_on_the_page_of_batch_files_is_the_one_to_its_first_line():
    requests, answer = (block.text for block in blocks(ROOT / "docs/batch-files.md") if block.language == "json")

    line = parse_line(RawLine(1, requests.splitlines()[0].encode()))

    assert (json.loads(answer)["id"], json.loads(answer)["custom_id"]) == (line.answer_id, line.custom_id)


def read_json(text):
    """Read an object, one of its fields, or an object on each line."""
    try:
        return [json.loads(text if text.startswith("{") else f"{{{text}}}")]
    except json.JSONDecodeError:
        return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_commands_in_running_text_exist_with_their_options(page):
    makefile = (ROOT / "Makefile").read_text()
    for line, (program, *words) in inline_commands(page):
        place = f"{page_id(page)}:{line}"
        match program:
            case "make":
                assert re.search(f"^{words[0]}:", makefile, re.MULTILINE), f"{place}: there is no target {words[0]}"
            case "python" if words[1] != "pytest":
                check_python(words, place)
            case "python" | "pytest":
                check_files(words, place)
            case _:
                check_names(words, place)
