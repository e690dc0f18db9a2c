"""Lines of batch files: what they may hold, and what is said of those that cannot be sent."""

import io
import json

import pytest

from flux2_client.batch import line_reader
from flux2_client.batch.batch_report import describe_end, describe_progress
from flux2_client.batch.image_folder import file_stem
from flux2_client.batch.line_reader import RawLine, count_lines, read_lines
from flux2_client.batch.progress import BatchProgress
from flux2_client.batch.request_line import LineFault, RequestLine, parse_line

JOB = {"model": "flux2", "prompts": [{"prompt": "a"}], "loras": []}


def parse(line, number=3):
    data = line if isinstance(line, bytes) else json.dumps(line).encode()
    return parse_line(RawLine(number, data))


@pytest.mark.parametrize(
    ("line", "url", "body"),
    [
        ({"custom_id": "a", "method": "POST", "url": "/v1/inference", "body": JOB}, "/v1/inference", JOB),
        ({"custom_id": "a", "url": "/v1/inference", "body": {}}, "/v1/inference", {}),
        (
            {"custom_id": "a", "method": "POST", "url": "/v1/images/generations", "body": {"prompt": "a"}},
            "/v1/images/generations",
            {"prompt": "a"},
        ),
        ({"custom_id": "a", **JOB}, "/v1/inference", JOB),
        ({"custom_id": "a", "prompt": "a", "n": 2}, "/v1/images/generations", {"prompt": "a", "n": 2}),
    ],
)
def test_a_line_names_its_endpoint_or_is_a_body_of_one(line, url, body):
    found = parse(line)

    assert isinstance(found, RequestLine)
    assert (found.number, found.custom_id, found.endpoint.url, found.body) == (3, "a", url, body)


@pytest.mark.parametrize(
    ("line", "custom_id", "message"),
    [
        (b"{", None, "line 3 is not JSON: "),
        (b"[" * 100_000, None, "line 3 is nested too deeply"),
        (b'{"custom_id": "\xff"}', None, "line 3 is not text in UTF-8: invalid start byte at byte 15"),
        (b"[1]", None, "line 3 is no JSON object; write "),
        ({}, None, "line 3 has no custom_id; give it a text of 1 to 512 characters that no other line has"),
        ({"custom_id": 7}, None, "line 3 has no custom_id"),
        ({"custom_id": ""}, None, "line 3 has no custom_id"),
        ({"custom_id": "x" * 513, "url": "/v1/inference", "body": {}}, None, "line 3 has no custom_id"),
        ({"custom_id": "a"}, "a", "line 3 has no body; write "),
        ({"custom_id": "a", "prompt": "a", "prompts": []}, "a", "line 3 has no body"),
        ({"custom_id": "a", "url": "/v1/inference", **JOB}, "a", "line 3 has no body"),
        ({"custom_id": "a", "url": "/v1/inference", "body": []}, "a", "line 3 has a body that is no JSON object"),
        ({"custom_id": "a", "body": {}}, "a", "line 3 has the url None; use /v1/inference or /v1/images/generations"),
        ({"custom_id": "a", "url": "/v1/images/edits", "body": {}}, "a", "line 3 has the url '/v1/images/edits'; use"),
        ({"custom_id": "a", "url": ["/v1/inference"], "body": {}}, "a", "line 3 has the url ["),
        ({"custom_id": "a", "method": "GET", "url": "/v1/inference", "body": {}}, "a", "line 3 has the method 'GET'"),
        (
            {"custom_id": "a", "url": "/v1/inference", "body": {}, "seed": 7},
            "a",
            "line 3 has the unknown field 'seed'; fields of the request belong into its body",
        ),
        (b'{"custom_id": "a", "prompt": "a", "seed": NaN}', "a", "line 3 cannot be sent as JSON: Out of range"),
        (b'{"custom_id": "a", "prompt": "\\ud800"}', "a", "line 3 cannot be sent as JSON: "),
    ],
)
def test_a_line_that_cannot_be_sent_says_why(line, custom_id, message):
    found = parse(line)

    assert isinstance(found, LineFault)
    assert (found.custom_id, found.code) == (custom_id, "invalid_line")
    assert found.message.startswith(message)


def test_the_id_of_an_answer_is_that_of_the_content_alone():
    line = {"custom_id": "a", "url": "/v1/inference", "body": {"model": "flux2", "prompts": []}}
    same = {"body": {"prompts": [], "model": "flux2"}, "method": "POST", "custom_id": "a", "url": "/v1/inference"}

    ids = {parse(line, number=1).answer_id, parse(same, number=9).answer_id}
    others = {
        parse({**line, "custom_id": "b"}).answer_id,
        parse({**line, "body": {"model": "flux2", "prompts": [1]}}).answer_id,
        parse({**line, "url": "/v1/images/generations"}).answer_id,
        parse(b"{", number=1).answer_id,
        parse(b"{", number=2).answer_id,
    }

    assert len(ids) == 1
    assert len(ids | others) == 6


def test_lines_end_as_on_any_system_and_blank_ones_do_not_count(tmp_path):
    data = b'\xef\xbb\xbf{"a": 1}\r\n\n  \n{"b": "\xe2\x80\xa8"}\n{"c": 3}'
    (tmp_path / "a.jsonl").write_bytes(data)

    lines = list(read_lines(io.BytesIO(data)))

    assert [(line.number, line.data) for line in lines] == [
        (1, b'{"a": 1}'),
        (4, b'{"b": "\xe2\x80\xa8"}'),
        (5, b'{"c": 3}'),
    ]
    assert count_lines(tmp_path / "a.jsonl") == 5


def test_a_line_that_is_too_long_is_skipped_and_the_next_one_read(monkeypatch):
    monkeypatch.setattr(line_reader, "MAX_LINE_BYTES", 10)
    monkeypatch.setattr(line_reader, "_PIECE_BYTES", 4)

    lines = list(read_lines(io.BytesIO(b"1234567890\n" + b"x" * 25 + b"\n123\n" + b"y" * 11)))

    assert [(line.number, line.data, line.is_whole) for line in lines] == [
        (1, b"1234567890", True),
        (2, b"xxxx", False),
        (3, b"123", True),
        (4, b"yyyy", False),
    ]
    assert parse_line(lines[1]).message.startswith("line 2 is longer than ")


@pytest.mark.parametrize(
    ("progress", "now", "end"),
    [
        (BatchProgress(), "0 of 0 lines, 0 under way", "0 of 0 lines succeeded"),
        (BatchProgress(lines=1, succeeded=1), "1 of 1 line, 0 under way", "1 of 1 line succeeded"),
        (
            BatchProgress(lines=10_000, succeeded=1200, failed=34, in_flight=100, earlier=1000),
            "1,234 of 10,000 lines, 34 failed, 100 under way",
            "1,200 of 10,000 lines succeeded, 34 failed, 1,000 answered by an earlier run",
        ),
    ],
)
def test_people_read_how_far_a_batch_is(progress, now, end):
    assert (describe_progress(progress), describe_end(progress)) == (now, end)


@pytest.mark.parametrize(
    ("custom_id", "stem"),
    [
        ("request-1", "request-1"),
        ("Köln", "Köln"),
        ("../../etc/passwd", "etc_passwd-"),
        ("a b", "a_b-"),
        ("a/b", "a_b-"),
        (".hidden", "hidden-"),
        ("x" * 500, "x" * 120 + "-"),
        ("\ud800", "none-"),
    ],
)
def test_the_files_of_a_line_cannot_leave_the_folder_or_replace_those_of_another(custom_id, stem):
    found = file_stem(custom_id, owns_name=True)

    assert "/" not in found
    assert found.startswith(stem)
    assert len(found) == len(stem) + (12 if stem.endswith("-") else 0)
    assert len(file_stem(custom_id, owns_name=False)) == len(stem.removesuffix("-")) + 13
