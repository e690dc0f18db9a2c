"""Log lines name the request, the item and the slot that they are about, in whatever thread they are written."""

import asyncio
import contextlib
import json
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

import pytest

from api.doors.access_log import AccessLog
from api.doors.caller import Caller
from api.doors.roles import CALLER
from shared.log_context import (
    in_this_context,
    item_context,
    leave_item,
    name_request,
    name_sweep,
    request_context,
    slot_context,
)

NAMES = ("request_id", "sweep_id", "item", "slot")


@pytest.fixture
def lines(configured):
    """A function that logs and returns the lines as objects."""
    return lambda act: [json.loads(line) for line in configured("json", act).splitlines()]


def names(line):
    return {name: line[name] for name in NAMES if name in line}


def test_lines_of_a_block_have_its_names_and_later_ones_have_not(lines):
    def act(logger):
        with slot_context("gpu-0"), item_context("job:with:colons:7"):
            logger.info("inside")
        logger.info("outside")

    inside, outside = lines(act)

    assert names(inside) == {"request_id": "job:with:colons", "item": "job:with:colons:7", "slot": "gpu-0"}
    assert names(outside) == {}


def test_values_of_a_line_come_before_those_of_its_block(lines):
    def act(logger):
        with item_context("job:1"):
            logger.info("handed over", extra={"item": "other:2"})

    [line] = lines(act)

    assert names(line) == {"request_id": "job", "item": "other:2"}


def test_lines_for_people_have_the_names_too(configured):
    def act(logger):
        with item_context("job:1"):
            logger.info("inside")

    assert "inside [flux2.test] item=job:1 request_id=job" in configured("console", act)


def test_a_thread_has_the_names_of_the_block_that_made_it(lines):
    def act(logger):
        with item_context("job:1"):
            thread = threading.Thread(target=in_this_context(logger.info), args=["carried"])
            bare = threading.Thread(target=logger.info, args=["bare"])
        with ThreadPoolExecutor(2) as pool, request_context("other"):
            list(pool.map(in_this_context(lambda text: logger.info(text)), ["pooled"]))
        for started in (thread, bare):
            started.start()
            started.join()

    pooled, carried, bare = lines(act)

    assert names(pooled) == {"request_id": "other"}
    assert names(carried) == {"request_id": "job", "item": "job:1"}
    assert names(bare) == {}


def test_work_for_another_item_leaves_the_item_and_keeps_the_slot(lines):
    def prepare_next(logger):
        leave_item()
        logger.info("prepared")

    def act(logger):
        with slot_context("gpu-0"), item_context("job:1"):
            thread = threading.Thread(target=in_this_context(prepare_next), args=[logger])
            thread.start()
            thread.join()
            logger.info("rendered")

    prepared, rendered = lines(act)

    assert names(prepared) == {"slot": "gpu-0"}
    assert names(rendered) == {"request_id": "job", "item": "job:1", "slot": "gpu-0"}


def call(path, *, method="GET", status=200, caller=None, accepts=(), level=logging.DEBUG):
    """Return an action that logs one call of an application, which accepts requests, and logs a line of its own."""

    async def application(scope, receive, send):
        scope[CALLER] = caller
        logging.getLogger("flux2.test").info("in the application")
        if accepts:
            name_request(*accepts)
        if status is None:
            raise asyncio.CancelledError
        await send({"type": "http.response.start", "status": status})

    async def send(message):
        pass

    def act(_logger):
        logging.getLogger("flux2").setLevel(level)
        scope = {"type": "http", "method": method, "path": path, "query_string": b"secret=1"}
        with contextlib.suppress(asyncio.CancelledError):
            asyncio.run(AccessLog(application)(scope, None, send))

    return act


def test_a_call_about_a_request_names_it_in_every_line(lines):
    inside, answered = lines(call("/v1/requests/job-1/cancel", method="POST", caller=Caller("acme", frozenset(), "k")))

    assert names(inside) == {"request_id": "job-1"}
    facts = {"method": "POST", "path": "/v1/requests/job-1/cancel", "status": 200, "tenant": "acme", "key": "k"}
    assert answered.items() >= {**facts, "event": "call answered", "level": "info", "request_id": "job-1"}.items()
    assert answered["seconds"] >= 0
    assert "secret" not in str(answered)


def test_a_submit_names_the_requests_that_it_accepted(lines):
    inside, answered = lines(call("/v1/replays", method="POST", status=202, accepts=("a", "b")))

    assert (names(inside), names(answered)) == ({}, {"request_id": "a,b"})
    assert "tenant" not in answered


def test_a_call_that_begins_where_another_ends_does_not_name_its_request(lines):
    def act(logger):
        name_request("before")
        name_sweep("sweep")
        call("/v1/models")(logger)
        logger.info("still of the call before")

    inside, answered, before = lines(lambda logger: copy_context().run(act, logger))

    assert (names(inside), names(answered), names(before)) == (
        {},
        {},
        {"request_id": "before", "sweep_id": "sweep"},
    )


@pytest.mark.parametrize(
    ("method", "status", "level"),
    [
        ("GET", 200, "debug"),
        ("HEAD", 404, "debug"),
        ("GET", 503, "info"),
        ("DELETE", 200, "info"),
        ("POST", None, "info"),
    ],
)
def test_reads_are_logged_in_detail_only(lines, method, status, level):
    _, answered = lines(call("/v1/adapters", method=method, status=status))

    assert (answered["level"], answered["status"]) == (level, status or 0)


def test_polls_cost_no_line_at_the_usual_level(lines):
    assert [line["event"] for line in lines(call("/v1/requests/x", level=logging.INFO))] == ["in the application"]
