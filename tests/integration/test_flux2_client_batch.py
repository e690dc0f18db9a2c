"""`flux2 batch` against a served API whose jobs a thread finishes as workers do."""

import asyncio
import base64
import json
import signal
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image
from renderer_thread import Renderer
from typer.testing import CliRunner

from flux2_client import answers as client_answers
from flux2_client import retries
from flux2_client.async_client import AsyncClient
from flux2_client.batch import job_watch
from flux2_client.batch.answer_file import AnswerFile
from flux2_client.batch.job_watch import JobWatch
from flux2_client.client import Client
from flux2_client.commands import app
from shared.errors import ApiError, OutputRefused

SIZE = {"width": 64, "height": 64, "sample_steps": 2}


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch):
    monkeypatch.setattr(job_watch, "_FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(job_watch, "_LONGEST_PAUSE_S", 0.2)


@pytest.fixture
def start_renderer(api, finish):
    """Start to finish the jobs; the end of the test ends it, however the test ends."""
    thread = Renderer(api, finish)
    yield thread.start
    if thread.is_alive():
        thread.stop()


@pytest.fixture
def renderer(start_renderer):
    start_renderer()


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder for the files of a test, in which its commands run."""
    folder = tmp_path / "batch"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def batch(api, files):
    """Run `flux2 batch requests.jsonl --output out.jsonl` in this process with more options."""

    def run(*options, url=api.url):
        arguments = ["batch", "requests.jsonl", "--output", "out.jsonl", *map(str, options), "--url", url]
        return CliRunner().invoke(app, arguments)

    return run


@pytest.fixture
def background():
    with ThreadPoolExecutor() as pool:
        yield pool.submit


def job(custom_id, *prompts, **fields):
    prompts = [{"prompt": prompt, **SIZE} for prompt in prompts or ["a"]]
    body = {"model": "flux2", "prompts": prompts, "loras": [], **fields}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/inference", "body": body}


def images(custom_id, **fields):
    body = {"prompt": "a", "size": "64x64", "sample_steps": 2, **fields}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/images/generations", "body": body}


def write(*lines):
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    Path("requests.jsonl").write_text("".join(f"{text}\n" for text in texts))


def answers(path="out.jsonl"):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def by_id(path="out.jsonl"):
    found = answers(path)
    assert len({answer["custom_id"] for answer in found}) == len(found)
    return {answer["custom_id"]: answer for answer in found}


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def accepted_jobs(api):
    return {line["request_id"] for line in api.http.get("/v1/requests", params={"limit": 200}).json()["data"]}


def test_lines_of_both_endpoints_are_answered_and_their_images_saved(api, batch, renderer, files):
    write(
        job("two", "a", "b"),
        images("urls", n=2),
        images("files", response_format="b64_json"),
        {"custom_id": "bare", "prompt": "a", "size": "64x64"},
        "",
    )

    done = batch("--download", "images")

    assert (done.exit_code, done.stdout) == (0, "4 of 4 lines succeeded\n"), done.stderr
    found = by_id()
    assert all(answer["error"] is None and answer["response"]["status_code"] == 200 for answer in found.values())
    result = found["two"]["response"]["body"]
    assert result == {
        **api.http.get(f"/v1/requests/{result['request_id']}/result").json(),
        "outputs": result["outputs"],
    }
    assert [(image["prompt"], image["seed"]) for image in result["outputs"]["images"]] == [("a", 42), ("b", 43)]
    assert found["two"]["response"]["request_id"] == result["request_id"]
    saved = {name: answer["files"] for name, answer in found.items()}
    assert saved == {
        "two": ["images/two-0.png", "images/two-1.png"],
        "urls": ["images/urls-0.png", "images/urls-1.png"],
        "files": ["images/files-0.png"],
        "bare": ["images/bare-0.png"],
    }
    [image] = found["files"]["response"]["body"]["data"]
    assert (image["url"], base64.b64decode(image["b64_json"])) == (None, Path("images/files-0.png").read_bytes())
    assert names(files) == ["images", "out.jsonl", "requests.jsonl"]


def test_images_of_ids_that_differ_in_case_have_names_that_differ_in_more(api, batch, renderer, files):
    write(job("Fox"), job("fox"), job("FOX"), job("fox"), job("owl"))

    assert batch("--download", "images").exit_code == 3

    saved = {line["custom_id"]: line["files"][0] for line in answers() if line["error"] is None}
    assert (saved["Fox"], saved["owl"]) == ("images/Fox-0.png", "images/owl-0.png")
    assert [name.rpartition("-")[0][:-12] for name in (saved["fox"], saved["FOX"])] == ["images/fox-", "images/FOX-"]
    assert len({name.lower() for name in saved.values()}) == len(names(files / "images")) == 4
    # A later run, which reads the answers, gives the same name.
    before = Path("out.jsonl").read_bytes()
    kept = [line for line in before.splitlines(keepends=True) if b'"custom_id": "fox"' not in line]
    Path("out.jsonl").write_bytes(b"".join(kept))
    batch("--download", "images")
    again = {line["custom_id"]: line["files"][0] for line in answers() if line["error"] is None}
    assert (len(kept), again) == (3, saved)


def test_the_answers_to_images_are_those_of_a_call_that_waits(api, batch, renderer, files):
    lines = [images("urls", n=2, seed=7), images("files", response_format="b64_json"), images("bad", prompt="fail")]
    write(*lines)

    assert batch().exit_code == 3

    for line in lines:
        # The key finds the job of the batch.
        answer = by_id()[line["custom_id"]]
        call = api.http.post(line["url"], json=line["body"], headers={"Idempotency-Key": answer["id"]})
        assert answer["response"]["status_code"] == call.status_code
        assert without_signatures(answer["response"]["body"]) == without_signatures(call.json())
    assert len(accepted_jobs(api)) == 3


def without_signatures(body):
    # When each was signed, and when the same job was accepted.
    for image in body.get("data", []):
        image["url"] = image["url"] and image["url"].partition("?")[0]
    return body


def test_a_line_that_cannot_be_rendered_leaves_the_others_alone(api, batch, renderer, files):
    write(
        "no json",
        job("good"),
        job("good", "another prompt"),
        job("no model", model="sd15"),
        images("no size", size="10x10"),
        job("no picture", "fail"),
        job("half", "a", "fail"),
        images("no pictures", prompt="fail"),
        job("no body") | {"body": None},
    )

    done = batch("--errors", "errors.jsonl")

    assert done.exit_code == 3
    assert done.stdout == "1 of 9 lines succeeded, 8 failed\n"
    assert "a line without a custom_id: invalid_line: line 1 is not JSON" in done.stderr
    assert "more lines fail; errors.jsonl says why" in done.stderr
    assert list(by_id()) == ["good"]
    errors = answers("errors.jsonl")
    statuses = [line["response"] and line["response"]["status_code"] for line in errors]
    assert {
        (line["custom_id"], line["error"]["code"], status) for line, status in zip(errors, statuses, strict=True)
    } == {
        (None, "invalid_line", None),
        ("good", "duplicate_custom_id", None),
        ("no model", "MODEL_NOT_FOUND", 400),
        ("no size", "INVALID_REQUEST", 400),
        ("no picture", "run_failed", 200),
        ("half", "run_failed", 200),
        ("no pictures", "run_failed", 500),
        ("no body", "invalid_line", None),
    }
    found = {line["custom_id"]: line for line in errors}
    assert found["good"]["error"]["message"] == "line 3 has the custom_id of line 2; give each line its own"
    assert found["no size"]["response"]["body"]["error"]["param"] == "size"
    assert found["no model"]["response"]["body"]["code"] == "MODEL_NOT_FOUND"
    assert len(found["half"]["response"]["body"]["outputs"]["images"]) == 1
    assert len(accepted_jobs(api)) == 4


def test_a_run_that_finds_answers_renders_nothing_again(api, batch, renderer, files):
    write("no json", job("a"), job("a"), job("b", "fail"))
    batch()
    before, jobs = Path("out.jsonl").read_bytes(), accepted_jobs(api)
    write("no json", job("a"), job("a"), job("b", "another prompt"), job("c"))

    done = batch("--json")

    assert done.exit_code == 3
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "event": "ended", "lines": 5, "succeeded": 2, "failed": 3,
        "in_flight": 0, "earlier": 4, "changed": 1, "lost": 0,
    }  # fmt: skip
    assert "1 line has other content than the line that out.jsonl answers" in done.stderr
    assert Path("out.jsonl").read_bytes().startswith(before)
    assert len(answers()) == 5
    assert len(accepted_jobs(api) - jobs) == 1


def test_failed_lines_are_rendered_again_in_other_jobs(api, batch, renderer, files):
    write(job("a"), job("b", "fail"), "no json", job("c", model="sd15"))
    batch("--errors", "errors.jsonl")
    first = {line["custom_id"]: line for line in answers("errors.jsonl")}

    again = batch("--errors", "errors.jsonl", "--retry-failed")
    second = {line["custom_id"]: line for line in answers("errors.jsonl")}
    write(job("a"), job("b", "fail"), job("new"), job("c"))
    mended = batch("--errors", "errors.jsonl", "--retry-failed")

    assert (again.exit_code, mended.exit_code) == (3, 3)
    assert set(first) == set(second) == {"b", None, "c"}
    assert list(by_id("errors.jsonl")) == ["b"]
    assert set(by_id()) == {"a", "new", "c"}
    attempts = [first["b"], second["b"], by_id("errors.jsonl")["b"]]
    assert len({line["response"]["request_id"] for line in attempts}) == 3
    assert len({line["id"] for line in attempts}) == 1
    assert len(accepted_jobs(api)) == 6
    assert not Path("out.jsonl.state").exists()


def start(url, *options):
    """Start the command in another process."""
    arguments = ["batch", "requests.jsonl", "--output", "out.jsonl", "--url", url, *options]
    return subprocess.Popen([sys.executable, "-m", "shared.cli", *arguments], stderr=subprocess.PIPE, text=True)


def count_answers():
    return Path("out.jsonl").read_bytes().count(b"\n") if Path("out.jsonl").exists() else 0


def test_a_batch_that_is_killed_loses_no_line_and_renders_none_twice(api, batch, renderer, files, wait_until):
    lines = [job(f"job-{number}") if number % 2 else images(f"images-{number}") for number in range(40)]
    write(*lines, job("job-1"), "no json")
    for answered in (4, 12, 20):
        process = start(api.url, "--in-flight", "6")
        wait_until(lambda: count_answers() >= answered, timeout_s=60, what="answers")  # noqa: B023
        process.kill()
        process.communicate()
        # The command may be killed while it writes.
        with Path("out.jsonl").open("ab") as file:
            file.write(b'{"id": "batch_req_1", "custom_id": "jo')
        if answered == 12:
            # Without it, the API finds the jobs by their keys.
            Path("out.jsonl.state").unlink()

    done = batch("--in-flight", "6")

    assert done.exit_code == 3, done.stderr
    found = answers()
    assert Counter(line["custom_id"] for line in found if line["error"] is None) == {
        line["custom_id"]: 1 for line in lines
    }
    assert sorted((line["custom_id"] or "", line["error"]["code"]) for line in found if line["error"]) == [
        ("", "invalid_line"),
        ("job-1", "duplicate_custom_id"),
    ]
    assert len(accepted_jobs(api)) == 40
    assert {line["response"]["request_id"] for line in found if line["response"]} == accepted_jobs(api)


def test_a_job_of_a_killed_batch_is_found_after_its_key_was_forgotten(api, batch, files, wait_until, start_renderer):
    write(job("a"))
    process = start(api.url)
    log = Path("out.jsonl.state-wal")
    wait_until(
        lambda: log.exists() and b"batch_req_" in log.read_bytes(), timeout_s=60, what="the job's id on the disk"
    )
    process.kill()
    process.communicate()
    [key] = api.ledger.redis.scan_iter("*idem*")
    api.ledger.redis.delete(key)
    start_renderer()

    done = batch()

    assert (done.exit_code, len(answers()), len(accepted_jobs(api))) == (0, 1, 1)


def test_ctrl_c_says_how_to_go_on(api, files, wait_until, batch, start_renderer):
    write(*[job(f"job-{number}") for number in range(20)])
    process = start(api.url, "--in-flight", "5")
    wait_until(lambda: api.ledger.queue_length("flux2") == 5, timeout_s=60, what="five jobs")
    process.send_signal(signal.SIGINT)
    _, messages = process.communicate(timeout=60)
    waiting = api.ledger.queue_length("flux2")
    start_renderer()

    done = batch()

    assert process.returncode == 130
    assert messages == ("jobs that were accepted go on; the same command goes on where this one stops\ninterrupted\n")
    # No more than were allowed, and the others after them.
    assert waiting == 5
    assert (done.exit_code, len(by_id()), len(accepted_jobs(api))) == (0, 20, 20)


def test_a_full_queue_delays_lines_and_fails_none(
    api, batch, files, start_renderer, background, wait_until, monkeypatch
):
    # The API, which knows no worker, asks to wait for half a minute.
    monkeypatch.setattr(retries, "_pause_s", lambda error, bound_s: 0.2)
    # The API's queue holds 50 images.
    write(*[job(f"job-{number}") for number in range(70)])

    running = background(batch, "--in-flight", "70")
    wait_until(lambda: api.ledger.queue_length("flux2") == 50, timeout_s=60, what="a full queue")
    start_renderer()
    done = running.result()

    assert done.exit_code == 0, done.stderr
    assert "trying again: queue_full" in done.stderr
    assert (len(by_id()), len(accepted_jobs(api))) == (70, 70)


def test_a_full_queue_is_waited_for_longer_than_calls_are_repeated(api, files, renderer, monkeypatch):
    write(job("a"))
    refusals = [ApiError("queue_full: full", retryable=True, retry_after_s=0.01, status=429) for _ in range(3)]
    submit = AsyncClient.submit

    async def refuse_first(*arguments, **options):
        if refusals:
            raise refusals.pop()
        return await submit(*arguments, **options)

    monkeypatch.setattr(AsyncClient, "submit", refuse_first)

    with Client(api.url, retry_s=0) as client:
        progress = client.run_batch("requests.jsonl", "out.jsonl")

    assert (refusals, progress.succeeded) == ([], 1)


def test_a_restart_of_the_service_delays_a_batch(serve_api, api, files, start_renderer, background, wait_until, batch):
    lines = [job(f"job-{number}") for number in range(20)]
    write(*lines)
    with serve_api(api.settings) as first:
        running = background(batch, "--in-flight", "5", url=first.url)
        wait_until(lambda: api.ledger.queue_length("flux2") == 5, timeout_s=60, what="five jobs")
    start_renderer()
    # While no API is there.
    wait_until(lambda: not api.ledger.queue_length("flux2"), timeout_s=60, what="the end of the jobs")
    with serve_api(api.settings, port=int(first.url.rpartition(":")[2])):
        done = running.result()

    assert done.exit_code == 0, done.stderr
    assert "trying again: " in done.stderr
    assert (len(by_id()), len(accepted_jobs(api))) == (20, 20)


def test_jobs_that_the_api_forgot_are_submitted_again_by_the_next_run(
    api, files, start_renderer, background, wait_until, batch
):
    write(job("a"), job("b"))
    running = background(batch)
    wait_until(lambda: api.ledger.queue_length("flux2") == 2, timeout_s=60, what="two jobs")
    api.ledger.redis.flushall()
    lost = running.result()
    start_renderer()

    done = batch()

    assert lost.exit_code == 1
    assert "the API does not know the jobs of 2 lines any more; run the same command again" in lost.stderr
    assert (done.exit_code, len(by_id())) == (0, 2)


def test_a_job_that_somebody_cancels_is_an_error(api, files, background, wait_until, batch):
    write(job("a"), images("b"))
    running = background(batch)
    wait_until(lambda: api.ledger.queue_length("flux2") == 2, timeout_s=60, what="two jobs")
    for request_id in accepted_jobs(api):
        api.http.post(f"/v1/requests/{request_id}/cancel")

    assert running.result().exit_code == 1
    assert {name: answer["error"]["code"] for name, answer in by_id().items()} == {"a": "canceled", "b": "canceled"}


def test_reference_images_of_this_host_are_uploaded(api, files, batch, renderer, slot_report):
    api.ledger.workers.beat("gpu-0", slot_report(features="merged,references"))
    Image.new("RGB", (96, 80), "teal").save("photo.png")
    line = job("a")
    line["body"]["prompts"][0]["ctrl_img"] = "photo.png"
    missing = job("b")
    missing["body"]["prompts"][0]["ctrl_img"] = "missing.png"
    write(line, missing)

    assert batch().exit_code == 3

    [image] = by_id()["a"]["response"]["body"]["outputs"]["images"]
    assert [reference["slot"] for reference in image["references"]] == [1]
    assert "'missing.png' is no file of this host" in by_id()["b"]["error"]["message"]


def test_what_no_line_can_change_ends_the_batch(api, files, batch, make_key):
    write(job("a"), job("b"))
    make_key()

    refused = batch()
    unreachable = batch(url="http://127.0.0.1:9")

    assert (refused.exit_code, unreachable.exit_code) == (1, 4)
    assert "UNAUTHORIZED" in refused.stderr
    assert names(files) == ["requests.jsonl"]


def test_a_key_that_may_only_read_ends_the_batch_and_a_limit_of_sizes_fails_lines(api, files, make_key, renderer):
    write(job("a"))
    reading = make_key(roles=("read",))["Authorization"].removeprefix("Bearer ")
    limited = make_key(max_steps=1)["Authorization"].removeprefix("Bearer ")

    with Client(api.url, api_key=reading) as client, pytest.raises(ApiError, match="FORBIDDEN"):
        client.run_batch("requests.jsonl", "out.jsonl")
    assert answers() == []
    with Client(api.url, api_key=limited) as client:
        progress = client.run_batch("requests.jsonl", "out.jsonl")

    assert (progress.failed, by_id()["a"]["error"]["code"]) == (1, "KEY_LIMIT")


def test_an_image_that_its_store_refuses_fails_its_line_alone(api, files, batch, renderer, monkeypatch):
    sign, first = api.store.url, []

    def spoil_the_first_job(key, **options):
        url, job_id = sign(key, **options), key.split("/")[1]
        first.append(job_id)
        return url.replace("Signature=", "Signature=0") if job_id == first[0] else url

    monkeypatch.setattr(api.store, "url", spoil_the_first_job)
    write(job("a"), job("b"), images("c", response_format="b64_json"))

    done = batch("--download", "images", "--in-flight", "1")

    assert (done.exit_code, done.stdout) == (3, "2 of 3 lines succeeded, 1 failed\n"), done.stderr
    assert {name: answer["error"] and answer["error"]["code"] for name, answer in by_id().items()} == {
        "a": "download_failed", "b": None, "c": None,
    }  # fmt: skip
    assert by_id()["a"]["error"]["message"].endswith(": 403 Forbidden")


def test_a_limit_for_the_day_ends_the_batch_after_the_jobs_that_it_allowed(
    api, files, batch, renderer, make_key, monkeypatch
):
    # Also in the last minutes of the day, in which a call would wait for its end.
    monkeypatch.setattr(client_answers, "_LONGEST_WAIT_S", 0.0)
    write(*[job(f"job-{number}") for number in range(12)])
    keys = [make_key(items_per_day=limit)["Authorization"].removeprefix("Bearer ") for limit in (5, 100)]

    ended = batch("--api-key", keys[0])
    answered = set(by_id())
    done = batch("--api-key", keys[1])

    assert (ended.exit_code, len(answered)) == (1, 5)
    assert "key_limit_reached: " in ended.stderr
    assert (done.exit_code, len(by_id())) == (0, 12)
    assert answered < set(by_id())


def test_a_program_runs_a_batch_and_sees_its_progress(api, files, renderer):
    write(*[job(f"job-{number}") for number in range(10)])
    seen = []

    with Client(api.url) as client:
        end = client.run_batch("requests.jsonl", "new/out.jsonl", images="images", in_flight=3, on_progress=seen.append)

    assert (end, seen[-1]) == (seen[-1], end)
    assert (end.lines, end.succeeded, end.in_flight) == (10, 10, 0)
    assert max(progress.in_flight for progress in seen) == 3
    assert len(by_id("new/out.jsonl")) == len(list(Path("images").iterdir())) == 10


@pytest.mark.parametrize("taken", ["requests.jsonl", "./requests.jsonl"])
def test_a_batch_does_not_write_into_its_requests(api, files, taken):
    write(job("a"))
    before = Path("requests.jsonl").read_bytes()

    done = CliRunner().invoke(app, ["batch", "requests.jsonl", "--output", taken, "--url", api.url])

    assert done.exit_code == 1
    assert "give requests, answers and errors a file each" in done.stderr
    assert Path("requests.jsonl").read_bytes() == before


def test_a_file_that_holds_something_else_is_refused_and_left_alone(api, files, batch):
    write(job("a"))
    Path("out.jsonl").write_text("my notes")

    done = batch()

    assert done.exit_code == 1
    assert "line 1 of out.jsonl is no answer of a batch; choose another file" in done.stderr
    assert Path("out.jsonl").read_text() == "my notes"
    assert names(files) == ["out.jsonl", "requests.jsonl"]


def test_answers_that_cannot_be_written_end_the_batch_while_other_jobs_wait(
    api, files, background, batch, finish, wait_until, start_renderer, monkeypatch
):
    write(job("a"), job("b"), job("c"))
    append = AnswerFile.append

    def refuse(file, answer):
        raise OutputRefused("cannot write out.jsonl: No space left on device; make room and run the command again")

    monkeypatch.setattr(AnswerFile, "append", refuse)
    running = background(batch)
    wait_until(lambda: api.ledger.queue_length("flux2") == 3, timeout_s=60, what="three jobs")
    finish(api, api.ledger.claim_next(("flux2",), slot="one", boot="one", warm="base"))

    full = running.result(timeout=60)
    monkeypatch.setattr(AnswerFile, "append", append)
    start_renderer()
    done = batch()

    assert (full.exit_code, full.stderr.count("No space left on device")) == (1, 1)
    assert (done.exit_code, len(by_id()), len(accepted_jobs(api))) == (0, 3, 3)


def test_jobs_behind_many_newer_ones_are_asked_for_one_by_one(api, renderer, monkeypatch):
    monkeypatch.setattr(job_watch, "_MOST_LINES", 3)

    async def watch():
        async with AsyncClient(api.url) as client:
            ids = [(await client.submit(job("a")["body"])).request_id for _ in range(8)]
            watch = JobWatch(client)
            looking = asyncio.create_task(watch.run())
            found = await asyncio.gather(*map(watch.wait, ids), watch.wait("unknown"))
            looking.cancel()
            return found

    assert asyncio.run(watch()) == [True] * 8 + [False]


def test_a_watch_that_the_api_refuses_says_so_to_all_who_wait(api, make_key):
    make_key()

    async def watch():
        async with AsyncClient(api.url) as client:
            watch = JobWatch(client)
            looking = asyncio.create_task(watch.run())
            found = await asyncio.gather(watch.wait("a"), watch.wait("b"), return_exceptions=True)
            looking.cancel()
            return found

    assert [error.status for error in asyncio.run(watch())] == [401, 401]
