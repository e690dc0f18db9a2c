"""The files of a batch's answers survive the end of a process at any byte."""

import errno
import json
import os
from pathlib import Path

import pytest

from flux2_client import part_file
from flux2_client.batch.answer_file import open_answers
from flux2_client.batch.answer_index import LineJob, open_index
from flux2_client.batch.answer_line import Answer, StoredAnswer, find_failure, id_key
from flux2_client.batch.batch_files import BatchPaths
from flux2_client.batch.endpoints import Failure, Response
from flux2_client.models import Result
from shared.errors import OutputRefused

FIRST = Answer("batch_req_1", "a", Response(200, {"x": 1}), "job-1", None)
SECOND = Answer("batch_req_2", "\ud800", Response(200, {"y": "\u2028"}), "job-2", Failure("run_failed", "it broke"))
FAULT = Answer("batch_line_3_00", "a", None, "", Failure("duplicate_custom_id", "line 3 has the custom_id of line 1"))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new" / "answers.jsonl"


def append(path, *answers):
    with open_answers(path) as file:
        list(file.stored())
        for answer in answers:
            file.append(answer)


def stored(path):
    with open_answers(path) as file:
        return list(file.stored())


def test_answers_have_the_shape_of_openais_batch_api(path):
    append(path, FIRST, SECOND, FAULT)

    assert [json.loads(line) for line in path.read_text().split("\n")[:-1]] == [
        {
            "id": "batch_req_1",
            "custom_id": "a",
            "response": {"status_code": 200, "request_id": "job-1", "body": {"x": 1}},
            "error": None,
        },
        {
            "id": "batch_req_2",
            "custom_id": "\ud800",
            "response": {"status_code": 200, "request_id": "job-2", "body": {"y": "\u2028"}},
            "error": {"code": "run_failed", "message": "it broke"},
        },
        {
            "id": "batch_line_3_00",
            "custom_id": "a",
            "response": None,
            "error": {"code": "duplicate_custom_id", "message": "line 3 has the custom_id of line 1"},
        },
    ]
    assert stored(path) == [FIRST.stored, SECOND.stored, FAULT.stored]
    assert [answer.key for answer in stored(path)] == ['"a"', '"\\ud800"', "batch_line_3_00"]


def test_a_last_line_that_was_cut_anywhere_is_removed(path):
    append(path, FIRST, SECOND)
    whole = path.read_bytes()
    first_bytes = len(FIRST.encode())
    for end in range(first_bytes, len(whole)):
        path.write_bytes(whole[:end])

        append(path, SECOND)

        assert path.read_bytes() == whole


def test_zeros_that_a_crash_left_at_the_end_are_removed(path):
    append(path, FIRST)
    whole = path.read_bytes()
    for rest in (bytes(5), b'{"id": "ba' + bytes(20)):
        path.write_bytes(whole + rest)

        assert stored(path) == [FIRST.stored]
        assert path.read_bytes() == whole


@pytest.mark.parametrize("content", [b"my notes\n", b"my notes", b'{"id": "batch_req_1"\n', b'{"a": 1}\n', b"[]\n"])
def test_a_file_that_holds_something_else_is_left_alone(path, content):
    path.parent.mkdir()
    path.write_bytes(FIRST.encode() + content)

    with pytest.raises(OutputRefused, match=r"line 2 of .* is no answer of a batch; choose another file"):
        stored(path)

    assert path.read_bytes() == FIRST.encode() + content


def test_answers_are_removed_by_replacing_the_file(path):
    append(path, FIRST, SECOND, FAULT)
    path.with_name("answers.jsonl.part").write_bytes(b"of an attempt that was killed, and longer than what stays" * 9)

    with open_answers(path) as file:
        file.keep(lambda answer: answer.succeeded)
        assert list(file.stored()) == [FIRST.stored]
        file.append(FAULT)

    assert path.read_bytes() == FIRST.encode() + FAULT.encode()
    assert [file.name for file in path.parent.iterdir()] == ["answers.jsonl"]


def test_the_new_file_is_on_the_disk_before_it_replaces_the_old_one(path, monkeypatch):
    append(path, FIRST, SECOND)
    stored = []
    monkeypatch.setattr(os, "fsync", lambda file: stored.append((os.fstat(file).st_size, path.stat().st_size)))

    with open_answers(path) as file:
        file.keep(lambda answer: answer.succeeded)

    assert stored == [(len(FIRST.encode()), len(FIRST.encode() + SECOND.encode()))]


def test_an_answer_that_a_full_disk_cuts_is_taken_back(path, monkeypatch):
    append(path, FIRST)
    write, room = os.write, [10, 0]

    def write_while_there_is_room(file, data):
        if not room:
            return write(file, data)
        if (size := room.pop(0)) == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, data[:size])

    with open_answers(path) as file:
        list(file.stored())
        monkeypatch.setattr(os, "write", write_while_there_is_room)
        with pytest.raises(OutputRefused, match="No space left on device; make room and run the command again"):
            file.append(SECOND)
        file.append(FAULT)

    assert path.read_bytes() == FIRST.encode() + FAULT.encode()


def test_answers_stay_if_there_is_no_room_for_the_new_file(path, monkeypatch):
    append(path, FIRST, SECOND)

    def refuse(name, *options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(part_file, "_open", refuse)
    with open_answers(path) as file, pytest.raises(OutputRefused, match="No space left on device"):
        file.keep(lambda answer: answer.succeeded)

    assert stored(path) == [FIRST.stored, SECOND.stored]


def test_requests_that_only_one_run_could_read_are_refused(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    # With both ends open, nobody who opens it waits.
    end = os.open(pipe, os.O_RDWR)

    for requests in (pipe, tmp_path):
        with pytest.raises(OutputRefused, match=r"is no file on a disk, .*; write the requests to one"):
            BatchPaths(requests, tmp_path / "out.jsonl").check()

    os.close(end)


def test_answers_that_the_next_run_could_not_read_are_refused(tmp_path):
    (tmp_path / "in.jsonl").touch()
    for place in ("/dev/null", tmp_path):
        for paths in ({"output": Path(place)}, {"output": tmp_path / "out.jsonl", "errors": Path(place)}):
            with pytest.raises(OutputRefused, match="is no file on a disk, from which the next run reads; choose"):
                BatchPaths(tmp_path / "in.jsonl", **paths).check()


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()

    with pytest.raises(OutputRefused, match="choose another"), open_answers(tmp_path / "file" / "answers.jsonl"):
        pass


def test_an_index_keeps_the_jobs_of_an_earlier_run_and_reads_answers_again(tmp_path):
    path = tmp_path / "state"
    job = LineJob("batch_req_9", "job-9", "")
    with open_index(path) as index:
        index.note_job("a", LineJob("batch_req_1", "job-1", "job-0"))
        index.note_job("\ud800", job)
        index.note_answer(FIRST.stored)
        assert (index.first_number("b", 4), index.first_number("b", 5)) == (4, 4)

    with open_index(path) as index:
        assert index.find_answer(id_key("a")) is None
        assert (index.find_job("a"), index.find_job("\ud800")) == (None, job)
        assert index.first_number("b", 5) == 5
        index.note_retry(SECOND.stored)
        assert index.find_job("\ud800") == LineJob("batch_req_2", "", "job-2")
        index.note_job("b", job)
        index.note_answer(SECOND.stored)
        assert index.find_answer(id_key("\ud800")) == StoredAnswer('"\\ud800"', "batch_req_2", "", False)

    # A job is left.
    assert path.exists()
    with open_index(path) as index:
        index.note_job("b", job)
        index.forget_jobs()
    assert list(tmp_path.iterdir()) == []


def test_the_first_of_ids_that_differ_in_case_owns_their_name(tmp_path):
    with open_index(tmp_path / "state") as index:
        for number, custom_id in enumerate(("Straße", "owl", "STRASSE", "owl", "straße"), start=1):
            index.first_number(custom_id, number)

        owners = [custom_id for custom_id in ("Straße", "STRASSE", "straße", "owl") if index.owns_name(custom_id)]

    assert owners == ["Straße", "owl"]


def fail_after(path, change):
    with open_index(path) as index, index.transaction():
        change(index)
        raise ZeroDivisionError


def test_an_index_without_jobs_is_deleted_also_after_a_failure(tmp_path):
    with pytest.raises(ZeroDivisionError):
        fail_after(tmp_path / "state", lambda index: index.note_answer(FIRST.stored))

    assert list(tmp_path.iterdir()) == []


def test_a_run_that_fails_forgets_no_jobs(tmp_path):
    job = LineJob("batch_req_1", "job-1", "")
    with open_index(tmp_path / "state") as index:
        index.note_job("a", job)

    with pytest.raises(ZeroDivisionError):
        fail_after(tmp_path / "state", lambda index: index.forget_jobs())

    with open_index(tmp_path / "state") as index:
        assert index.find_job("a") == job


def test_one_run_at_a_time_has_an_index(tmp_path):
    with (
        open_index(tmp_path / "state"),
        pytest.raises(OutputRefused, match="another flux2 batch writes the same answers"),
        open_index(tmp_path / "state"),
    ):
        pass

    with open_index(tmp_path / "state"):
        pass


def test_an_index_that_is_damaged_says_what_to_do(tmp_path):
    (tmp_path / "state").write_bytes(b"no database" * 1000)

    with pytest.raises(OutputRefused, match="delete it and run the command again"), open_index(tmp_path / "state"):
        pass


@pytest.mark.parametrize(
    ("result", "failure"),
    [
        ({"status": "succeeded"}, None),
        ({"status": "canceled"}, Failure("canceled", "request 1 was canceled")),
        ({"status": "canceled", "error": "the deadline passed"}, Failure("canceled", "the deadline passed")),
        (
            {"status": "failed", "errors": [{"index": 0, "code": "not_finite", "message": "NaN"}]},
            Failure("not_finite", "NaN"),
        ),
    ],
)
def test_the_failure_of_a_job_is_that_of_its_first_image(result, failure):
    assert find_failure(Result.model_validate({"request_id": "1", "created_at": "", **result})) == failure
