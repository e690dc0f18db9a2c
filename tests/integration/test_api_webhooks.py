"""Webhooks from the end of a job to a receiver on a real socket; private addresses receive none."""

import ipaddress
import json
import logging
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpcore2
import pytest
from standardwebhooks.webhooks import Webhook
from structlog.contextvars import get_contextvars

from api.webhook_message import Delivery, post_message
from api.webhook_url import check_webhook_url
from api.webhooks import RETRY_WAITS_S, Courier
from shared.errors import InvalidRequest
from shared.job import ItemError
from shared.ledger import Ledger, keys
from shared.ledger.outbox import WebhookMessage
from shared.network.address_ranges import is_public
from shared.network.addresses import resolve_host
from shared.settings import WebhookSettings
from shared.webhook_secrets import tenant_secret

BODY = {"model": "flux2", "loras": [], "prompts": [{"prompt": "a cat", "width": 64, "height": 64}]}
WAITING = {"state": "waiting", "attempts": 0, "error": "", "items_waiting": 0, "items_failed": 0, "items_error": ""}


class Receiver(ThreadingHTTPServer):
    """Answers each message with the next status of `script`; the last one repeats."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, *script):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script = list(script)
        self.messages = []
        self.closing = threading.Event()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/hook"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.messages.append((self.path, dict(self.headers), body))
        status = self.server.script.pop(0) if len(self.server.script) > 1 else self.server.script[0]
        if status == "drip":
            self.wfile.write(b"HTTP/1.1 200 OK\r\n")
            while not self.server.closing.wait(0.05):
                self.wfile.write(b"X-Drip: 1\r\n")
            return
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "/elsewhere")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def receiver(serve_http):
    return lambda *script: serve_http(Receiver(*script))


def submit(api, **fields):
    answer = api.http.post("/v1/inference", json={**BODY, **fields})
    assert answer.status_code == 202, answer.text
    return answer.json()["request_id"]


def end(api):
    """End the oldest queued item as canceled."""
    claim = api.ledger.claim_next(["flux2"], slot="test", boot="test", warm="base")
    assert api.ledger.commit(claim, None) == "committed"


def webhook(api, job_id):
    return api.http.get(f"/v1/requests/{job_id}/status").json()["webhook"]


def make_due(api, job_id):
    """Make the next attempt due now."""
    api.ledger.redis.zadd(keys.OUTBOX, {job_id: 0})


def test_a_receiver_gets_one_message_about_an_ended_job_and_can_verify_it(api, receiver, wait_until, webhook_secret):
    hook = receiver(204)
    job_id = submit(api, webhook_url=hook.url)
    assert webhook(api, job_id) == WAITING

    end(api)
    wait_until(lambda: webhook(api, job_id)["state"] == "delivered", what="the delivery")

    [(path, headers, body)] = hook.messages
    assert path == "/hook"
    message = Webhook(webhook_secret).verify(body, headers)
    assert message["type"] == "request.canceled"
    assert message["data"]["request_id"] == job_id
    assert message["data"]["items"] == [{"index": 0, "status": "canceled"}]
    assert headers["webhook-id"] == f"{job_id}:canceled"
    assert api.ledger.outbox.count_undelivered() == 0


def test_a_failed_delivery_is_repeated_with_the_same_id_and_body(api, receiver, wait_until):
    hook = receiver(500, 200)
    job_id = submit(api, webhook_url=hook.url)

    end(api)
    wait_until(lambda: webhook(api, job_id)["error"] == "answered 500", what="the first attempt")
    assert webhook(api, job_id)["state"] == "waiting"
    make_due(api, job_id)
    wait_until(lambda: webhook(api, job_id)["state"] == "delivered", what="the second attempt")

    (_, first, first_body), (_, second, second_body) = hook.messages
    assert first["webhook-id"] == second["webhook-id"]
    assert first_body == second_body
    assert webhook(api, job_id) == WAITING | {"state": "delivered", "attempts": 2}


def test_a_receiver_that_answers_410_gets_no_second_attempt(api, receiver, wait_until):
    hook = receiver(410)
    job_id = submit(api, webhook_url=hook.url)

    end(api)

    wait_until(lambda: webhook(api, job_id)["state"] == "failed", what="the end of the attempts")
    assert len(hook.messages) == 1


def test_a_redirect_is_not_followed(api, receiver, wait_until):
    hook = receiver(302)
    job_id = submit(api, webhook_url=hook.url)

    end(api)

    wait_until(lambda: webhook(api, job_id)["error"] == "answered 302", what="the attempt")
    assert [path for path, _, _ in hook.messages] == ["/hook"]


def test_a_receiver_that_drips_its_answer_cannot_block_a_sender(api, receiver, wait_until):
    hook = receiver("drip")
    job_id = submit(api, webhook_url=hook.url)
    began = time.monotonic()

    end(api)

    wait_until(lambda: webhook(api, job_id)["error"].startswith("ReadTimeout"), what="the end of the patience")
    assert time.monotonic() - began < 5


def test_a_job_without_a_webhook_leaves_nothing_to_send(api):
    job_id = submit(api)

    end(api)

    assert api.ledger.outbox.count_undelivered() == 0
    assert webhook(api, job_id) is None


def test_a_job_with_an_unreadable_spec_is_reported_like_any_other(api, receiver, wait_until):
    hook = receiver(200)
    unreadable, fine = submit(api, webhook_url=hook.url), submit(api, webhook_url=hook.url)
    api.ledger.redis.hset(keys.item(f"{unreadable}:0"), "spec", '{"model": "flux2", "future": 1}')

    end(api)

    for job_id in (unreadable, fine):
        wait_until(lambda job_id=job_id: webhook(api, job_id)["state"] == "delivered", what="the delivery")
    sent = [json.loads(body)["data"] for _, _, body in hook.messages]
    assert {data["request_id"]: data["status"] for data in sent} == {unreadable: "failed", fine: "canceled"}
    assert "cannot read it" in next(data["error"] for data in sent if data["request_id"] == unreadable)


@pytest.fixture
def log_names():
    """Keep in each line of the courier what its context names, as `names`."""

    def keep(line):
        line.names = get_contextvars()
        return True

    logger = logging.getLogger("flux2.api.webhooks")
    logger.addFilter(keep)
    yield
    logger.removeFilter(keep)


def test_a_message_about_an_unreadable_record_waits_and_does_not_delay_others(
    api, receiver, wait_until, caplog, log_names
):
    hook = receiver(200)
    broken, fine = submit(api, webhook_url=hook.url), submit(api, webhook_url=hook.url)
    api.ledger.redis.hset(keys.job(broken), "record", "no JSON")

    end(api)
    wait_until(lambda: api.ledger.redis.hget(keys.job(broken), "webhook_error"), what="the attempt at the broken one")
    end(api)
    wait_until(lambda: webhook(api, fine)["state"] == "delivered", what="the other's delivery")

    stored = api.ledger.redis.hmget(keys.job(broken), "webhook_state", "webhook_attempts", "webhook_error")
    assert stored == ["waiting", "1", "not sent: JSONDecodeError"]
    assert api.ledger.redis.zscore(keys.OUTBOX, broken) > api.ledger.now_ms()
    assert len(hook.messages) == 1
    (logged,) = [line for line in caplog.records if line.message == "message not sent"]
    assert (logged.names, bool(logged.exc_info)) == ({"request_id": broken}, True)
    assert api.http.get("/ready").json()["checks"]["courier"] == "ok"

    # It is sent as soon as its record can be read.
    api.ledger.redis.hset(keys.job(broken), "record", '{"warnings": []}')
    make_due(api, broken)
    wait_until(lambda: webhook(api, broken)["state"] == "delivered", what="the delivery")


def test_the_courier_outlives_an_outbox_that_cannot_be_read(api, receiver, wait_until, caplog):
    hook = receiver(200)
    job_id = submit(api, webhook_url=hook.url)
    api.ledger.redis.set(keys.OUTBOX, "no sorted set")
    wait_until(lambda: "due messages cannot be read" in caplog.text, what="a look at the outbox")

    api.ledger.redis.delete(keys.OUTBOX)
    end(api)

    wait_until(lambda: webhook(api, job_id)["state"] == "delivered", what="the delivery")


def test_two_senders_do_not_get_the_same_message(redis_client, settings):
    clock = [1_000_000]
    ledger = Ledger(redis_client, settings().queue, clock_ms=lambda: clock[0])
    redis_client.hset(keys.job("job"), mapping={"webhook": "https://example.com"})
    redis_client.zadd(keys.OUTBOX, {"job": clock[0]})

    assert ledger.outbox.reserve_due(reserve_s=10, limit=5) == [WebhookMessage("job", "https://example.com", 1)]
    assert ledger.outbox.reserve_due(reserve_s=10, limit=5) == []

    # The first sender died before it could record an outcome. Others look on; a clock that jumps would be no proof.
    clock[0] += 5_000
    assert ledger.outbox.reserve_due(reserve_s=10, limit=5) == []
    clock[0] += 5_000
    assert ledger.outbox.reserve_due(reserve_s=10, limit=5) == [WebhookMessage("job", "https://example.com", 2)]


def test_a_message_is_given_up_after_three_days(redis_client, settings, webhook_secret):
    ledger = Ledger(redis_client, settings().queue)
    courier = Courier(ledger, settings(webhook={"secret": webhook_secret}))
    redis_client.zadd(keys.OUTBOX, {"job": 0})

    courier._record(WebhookMessage("job", "https://example.com", len(RETRY_WAITS_S)), Delivery("answered 500"))
    assert redis_client.hget(keys.job("job"), "webhook_state") == "waiting"
    courier._record(WebhookMessage("job", "https://example.com", len(RETRY_WAITS_S) + 1), Delivery("answered 500"))

    assert redis_client.hget(keys.job("job"), "webhook_state") == "failed"
    assert ledger.outbox.count_undelivered() == 0
    assert 2 * 86_400 < sum(RETRY_WAITS_S) < 4 * 86_400


BAD_URLS = [
    "http://example.com/",
    "ftp://example.com/",
    "gopher://example.com/",
    "file:///etc/passwd",
    "https://",
    "https:///path",
    "example.com",
    "https://user@example.com/",
    "https://user:secret@example.com/",
    "https://example.com@127.0.0.1/",
    "https://example.com/#fragment",
    "https://example.com:notaport/",
    "https://example.com:99999/",
    "https://exa mple.com/",
    "https://example.com/\r\nX-Injected: 1",
    "https://ex\u0430mple.com/",
    "https://[::1",
    "https://127.0.0.1/",
    "https://127.1.2.3:8443/x",
    "https://0.0.0.0/",
    "https://10.0.0.1/",
    "https://172.16.0.1/",
    "https://172.31.255.255/",
    "https://192.168.1.1/",
    "https://169.254.169.254/latest/meta-data/",
    "https://100.64.0.1/",
    "https://198.18.0.1/",
    "https://224.0.0.1/",
    "https://240.0.0.1/",
    "https://255.255.255.255/",
    "https://[::]/",
    "https://[::1]/",
    "https://[::ffff:127.0.0.1]/",
    "https://[::ffff:169.254.169.254]/",
    "https://[fe80::1]/",
    "https://[fc00::1]/",
    "https://[fd00:ec2::254]/",
    "https://[ff02::1]/",
    "https://[64:ff9b::7f00:1]/",
    "https://[64:ff9b::a9fe:a9fe]/",
    "https://[2002:7f00:1::]/",
    "https://[2001:db8::1]/",
    "https://[::127.0.0.1]/",
    "https://[64:ff9b:1::7f00:1]/",
    "https://[fec0::1]/",
    "https://192.0.0.9/",
]


@pytest.mark.parametrize("url", BAD_URLS)
def test_a_url_that_is_not_a_public_https_address_is_refused(url, webhook_secret):
    with pytest.raises(InvalidRequest) as refused:
        check_webhook_url(url, WebhookSettings(secret=webhook_secret))

    assert (refused.value.code, refused.value.field) == ("INVALID_WEBHOOK_URL", "webhook_url")


@pytest.mark.parametrize(
    "url", ["https://example.com/hook?a=1", "https://93.184.215.14:8443/", "https://xn--e1afmkfd.com"]
)
def test_a_public_https_url_is_accepted(url, webhook_secret):
    check_webhook_url(url, WebhookSettings(secret=webhook_secret))


def test_without_a_secret_webhooks_are_refused_and_the_setting_is_named():
    with pytest.raises(InvalidRequest, match="disabled on this server; set FLUX2_WEBHOOK_SECRET"):
        check_webhook_url("https://example.com/", WebhookSettings())


def test_a_bad_webhook_url_is_a_problem_that_names_its_field(api):
    answer = api.http.post("/v1/inference", json={**BODY, "webhook_url": "ftp://example.com"})

    assert answer.status_code == 400
    assert (answer.json()["code"], answer.json()["errors"][0]["path"]) == ("INVALID_WEBHOOK_URL", "webhook_url")


# These reach an address only through the resolver, which knows more spellings than ipaddress.
@pytest.mark.parametrize(
    "host",
    ["localhost", "127.1", "2130706433", "0x7f.0.0.1", "0177.0.0.1", "127.0.0.1.", "0", "::1", "no-such-host.invalid"],
)
def test_a_private_host_is_not_connected_to_in_any_spelling(host):
    with pytest.raises(httpcore2.ConnectError):
        resolve_host(host, 443, allow_private=False)


def test_one_private_address_among_public_ones_is_enough_to_refuse(monkeypatch):
    answers = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 443)) for address in ("93.184.215.14", "127.0.0.1")
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answers)

    with pytest.raises(httpcore2.ConnectError, match=r"has the address 127\.0\.0\.1, which is not public"):
        resolve_host("rebinding.example", 443, allow_private=False)


def test_a_name_is_resolved_once_and_the_connection_uses_the_checked_address(monkeypatch, settings, receiver):
    # A name that resolves to a public address at first, and to the canary afterwards.
    canary = receiver(200)
    asked, real = [], socket.getaddrinfo

    def rebind(host, port, *args, **options):
        if host != "rebinding.example":
            return real(host, port, *args, **options)
        asked.append(host)
        address = "127.0.0.2" if len(asked) == 1 else "127.0.0.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(socket, "getaddrinfo", rebind)
    monkeypatch.setattr(
        "shared.network.addresses.is_public", lambda address: address != ipaddress.ip_address("127.0.0.1")
    )
    made = settings(webhook={"secret": "whsec_" + "A" * 32, "timeout_s": 0.5})
    url = f"http://rebinding.example:{canary.server_port}/"

    delivery = post_message(url, message_id="id", body="{}", tenant="default", settings=made.webhook)

    assert delivery.may_retry
    assert delivery.error
    assert canary.messages == []


@pytest.mark.parametrize("address", ["93.184.215.14", "2606:2800:21f:cb07::1", "64:ff9b::5db8:d70e"])
def test_public_addresses_are_public(address):
    assert is_public(ipaddress.ip_address(address))


def test_messages_hold_only_facts_that_do_not_change_later(api, receiver, wait_until):
    hook = receiver(200)
    job_id = submit(api, webhook_url=hook.url)

    end(api)
    wait_until(lambda: hook.messages, what="the message")

    data = json.loads(hook.messages[0][2])["data"]
    assert set(data) == {"request_id", "status", "model", "items", "error", "result_url"}
    assert data["result_url"].endswith(f"/v1/requests/{job_id}/result")


def test_a_webhook_is_sent_again_when_the_caller_asks_for_it(api, receiver, wait_until, webhook_secret):
    def resend(job):
        return api.http.post(f"/v1/requests/{job}/webhook/resend")

    hook = receiver(410, 204)
    answer = api.http.post("/v1/inference", json={**BODY, "webhook_url": hook.url}, headers={"X-Tenant": "acme"})
    job_id = answer.json()["request_id"]
    assert (resend(job_id).status_code, resend(job_id).json()["code"]) == (409, "WEBHOOK_WAITING")
    end(api)
    wait_until(lambda: webhook(api, job_id)["state"] == "failed", what="the end of the attempts")

    # A message that was given up, and then one that was delivered.
    for _ in range(2):
        sent = len(hook.messages)
        answer = resend(job_id)
        assert answer.status_code == 202
        assert answer.json()["webhook"] == WAITING
        wait_until(lambda sent=sent: len(hook.messages) > sent, what="the message")
        wait_until(lambda: webhook(api, job_id) == WAITING | {"state": "delivered", "attempts": 1}, what="its delivery")

    assert len({(headers["webhook-id"], body) for _, headers, body in hook.messages}) == 1
    # Signed with the tenant's own secret, and with the one that its receivers have had so far.
    for secret in (tenant_secret(webhook_secret, "acme"), webhook_secret):
        assert Webhook(secret).verify(hook.messages[0][2], hook.messages[0][1])["data"]["request_id"] == job_id
    without = submit(api)
    assert (resend(without).status_code, resend(without).json()["code"]) == (400, "NO_WEBHOOK")
    assert resend("unknown").status_code == 404


def test_a_receiver_gets_the_chosen_events_of_images_and_can_verify_them(
    api, receiver, wait_until, webhook_secret, make_result
):
    hook = receiver(204)
    job_id = submit(
        api,
        prompts=BODY["prompts"] * 2,
        webhook_url=hook.url,
        webhook_events=["item.succeeded", "item.failed", "request.succeeded"],
    )
    for outcome in (make_result(), ItemError(code="run_failed", message="it broke", retryable=True)):
        claim = api.ledger.claim_next(["flux2"], slot="test", boot="test", warm="base")
        api.ledger.commit(claim, outcome)
    wait_until(lambda: webhook(api, job_id)["items_waiting"] == 0, what="the deliveries")

    verify = Webhook(webhook_secret).verify
    messages = {headers["webhook-id"]: verify(body, headers) for _, headers, body in hook.messages}
    assert set(messages) == {f"{job_id}:0:succeeded", f"{job_id}:1:failed"}
    failed = messages[f"{job_id}:1:failed"]
    assert failed["type"] == "item.failed"
    assert failed["data"].pop("result_url").endswith(f"/v1/requests/{job_id}/result")
    assert failed["data"] == {
        "request_id": job_id,
        "index": 1,
        "status": "failed",
        "model": "flux2",
        "error": "it broke",
    }
    # The job failed, and the caller left that out.
    assert webhook(api, job_id)["state"] == "skipped"

    refused = api.http.post("/v1/inference", json={**BODY, "webhook_events": ["item.failed"]})
    assert (refused.status_code, refused.json()["errors"][0]["path"]) == (400, "webhook_events")
    assert api.http.post("/v1/inference", json={**BODY, "webhook_events": []}).status_code == 422
