"""The doctor names each fault, and only those."""

import json
import re
import uuid
from pathlib import Path

import pytest
from typer.testing import CliRunner

from shared.cli import app
from shared.doctor import run_checks
from shared.job import ItemError
from shared.key_check import check_keys
from shared.keys.record import KeyRecord
from shared.keys.secret import KeyText, SecretHash
from shared.ledger import Ledger, keys
from shared.redis_url import RedisUrl


@pytest.fixture
def sound(redis_url, redis_client, s3, settings, tmp_path):
    """Settings of a service in which only workers are missing."""

    def make(**sections):
        return settings(
            **{
                "redis": {"url": redis_url},
                "storage": s3.storage.model_dump(),
                "s3": s3.s3.model_dump(),
                "adapters": {"root": tmp_path},
                "sources": {"cache_dir": tmp_path / "cache"},
                **sections,
            }
        )

    return make


@pytest.fixture
def configured(redis_client):
    """Change Redis' configuration for one test."""
    before = {}

    def change(name, value):
        before[name] = redis_client.config_get(name)[name]
        redis_client.config_set(name, value)

    yield change

    for name, value in before.items():
        redis_client.config_set(name, value)


def report(made):
    return {finding.name: finding for finding in run_checks(made)}


def test_a_sound_service_without_workers_has_one_warning(sound):
    found = report(sound())

    assert {name: finding.state for name, finding in found.items()} == {
        "redis": "ok",
        "redis is durable": "ok",
        "clock": "ok",
        "workers": "warning",
        "leases": "ok",
        "wake-ups": "ok",
        "keys": "ok",
        "storage": "ok",
        "links": "ok",
        "adapters": "ok",
        "sources": "ok",
    }


def test_weights_of_another_model_are_named_with_the_settings_to_change(sound, tmp_path):
    (tmp_path / "flux-2-klein-4b.safetensors").touch()

    found, right, elsewhere = (
        report(sound(model={"id": model, "path": path}))["model"]
        for model, path in [
            ("flux2_klein_4b", str(tmp_path)),
            ("flux2_klein_4b_distilled", str(tmp_path)),
            ("flux2_klein_4b", "/a/folder/of/another/host"),
        ]
    )

    assert (found.state, right.state, elsewhere.state) == ("failed", "ok", "ok")
    assert "holds flux-2-klein-4b.safetensors, so it is flux2_klein_4b_distilled" in found.detail
    assert found.remedy.startswith("set FLUX2_MODEL_ID")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("appendonly", "no", "appendonly is no"),
        ("appendfsync", "everysec", "appendfsync is everysec"),
        ("maxmemory-policy", "allkeys-lru", "maxmemory-policy is allkeys-lru"),
    ],
)
def test_a_redis_that_may_lose_jobs_is_named_with_the_remedy(sound, configured, name, value, words):
    configured(name, value)

    finding = report(sound())["redis is durable"]

    assert finding.state == "failed"
    assert words in finding.detail
    assert name in finding.remedy


def test_a_redis_that_is_nearly_full_is_named(sound, redis_client, configured):
    configured("maxmemory", str(int(redis_client.info("memory")["used_memory"] * 1.02) + 10_000))

    assert "bytes are used" in report(sound())["redis is durable"].detail


def test_a_redis_that_hides_its_configuration_is_named(sound, redis_client, redis_url):
    redis_client.acl_setuser("hidden", enabled=True, passwords=["+pw"], keys=["*"], commands=["+@all", "-config"])
    try:
        found = report(sound(redis={"url": redis_url.replace("redis://", "redis://hidden:pw@")}))
    finally:
        redis_client.acl_deluser("hidden")

    assert "cannot be read" in found["redis is durable"].detail


@pytest.fixture
def url_of_user(redis_client, redis_url):
    """Make a user of Redis by the rules of its ACL; return the URL with its login."""

    def make(rules):
        redis_client.execute_command("ACL", "SETUSER", "limited", "reset", "on", ">pw", *rules.split())
        return redis_url.replace("redis://", "redis://limited:pw@")

    yield make

    redis_client.acl_deluser("limited")


@pytest.mark.parametrize(
    ("rules", "failed", "words"),
    [
        ("~* +@all -ping", {"redis", "wake-ups"}, "'ping'"),
        ("~* +@all -time", {"redis", "clock", "workers", "queue"}, "'time'"),
        ("~* +@all -evalsha", {"redis"}, "'evalsha'"),
        ("~* +@all -brpop", {"redis"}, "'brpop'"),
        ("~other:* +@all", {"redis", "workers", "queue", "leases", "webhooks", "keys"}, "keys"),
    ],
)
def test_what_redis_forbids_is_named_and_the_other_checks_run(sound, url_of_user, rules, failed, words):
    found = report(sound(redis={"url": url_of_user(rules)}, webhook={"secret": f"whsec_{'a' * 32}"}))

    assert {name for name, finding in found.items() if finding.state == "failed"} == failed
    assert words in found["redis"].detail
    assert "script:" not in found["redis"].detail
    assert {found[name].remedy for name in failed} == {"allow it with ACL SETUSER, as docs/operations.md describes"}
    assert found["storage"].state == "ok"


def test_the_documented_permissions_suffice(sound, url_of_user):
    text = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    [rules] = re.findall(r"^ *ACL SETUSER flux2 on >password (.*)$", text, re.MULTILINE)

    found = report(sound(redis={"url": url_of_user(rules)}))

    assert {finding.name for finding in found.values() if finding.state != "ok"} == {"workers"}


def test_a_check_that_breaks_is_one_line_and_the_other_checks_run(sound, monkeypatch):
    def break_down(client):
        raise RuntimeError("two\n lines")

    monkeypatch.setattr("shared.doctor.read_server", break_down)

    found = report(sound())

    assert (found["redis"].state, found["redis"].detail) == ("failed", "RuntimeError: two lines")
    assert "bug" in found["redis"].remedy
    assert found["leases"].state == found["storage"].state == "ok"


def test_the_other_checks_run_while_redis_is_away(sound):
    found = report(sound(redis={"url": "redis://127.0.0.1:1/0", "timeout_s": 0.5}))

    assert found["redis"].state == "failed"
    assert found["storage"].state == "ok"


def test_wake_ups_that_cannot_be_sent_are_named_though_the_ledger_works(sound, monkeypatch):
    # As if the URL meant another server for Celery than for the ledger.
    elsewhere = {"broker_url": "redis://127.0.0.1:1/0", "broker_use_ssl": None}
    monkeypatch.setattr(RedisUrl, "celery_settings", lambda _: elsewhere)

    found = report(sound())

    assert found["leases"].state == "ok"
    assert found["wake-ups"].state == "failed"
    assert "127.0.0.1:1" in found["wake-ups"].detail


def test_a_missing_bucket_and_a_missing_folder_are_named(sound, s3, tmp_path):
    found = report(
        sound(s3={**s3.s3.model_dump(), "bucket": "no-such-bucket"}, adapters={"root": tmp_path / "nowhere"})
    )

    assert "no-such-bucket" in found["storage"].detail
    assert "nowhere" in found["adapters"].detail


def test_a_cache_without_a_folder_or_without_room_is_named_and_an_air_gap_is_stated(sound, tmp_path):
    (tmp_path / "file").touch()
    huge = 2**50

    no_folder, no_room, air_gap, sound_one = (
        report(sound(sources=sources, adapters={"root": tmp_path, "max_bytes": huge}))["sources"]
        for sources in (
            {"cache_dir": tmp_path / "file" / "cache"},
            {"cache_dir": tmp_path / "cache", "cache_max_bytes": huge},
            {"cache_dir": tmp_path / "file" / "cache", "local_only": True},
            {"cache_dir": tmp_path / "cache", "cache_max_bytes": 1000},
        )
    )

    assert [no_folder.state, no_room.state, air_gap.state, sound_one.state] == ["warning", "warning", "ok", "ok"]
    assert "file/cache cannot be written" in no_folder.detail
    assert "an adapter may have" in no_room.detail
    assert "FLUX2_SOURCES_LOCAL_ONLY" in air_gap.detail
    assert "hub huggingface.co:443" in sound_one.detail
    assert not (tmp_path / "cache").exists()


def test_items_without_a_worker_and_leases_without_a_caretaker_are_named(sound, redis_client, item):
    made = sound()
    ledger = Ledger(redis_client, made.queue)
    for _ in range(2):
        ledger.accept(uuid.uuid4().hex, [item()], record={})
    claim = ledger.claim_next(["flux2"], slot="gone", boot="b", warm="base")
    redis_client.zadd(keys.LEASES, {claim.item_id: 1})

    found = report(made)

    assert found["queue"].detail.startswith("1 item of flux2 is queued, but no worker serves it")
    assert claim.item_id in found["leases"].detail


def test_images_that_did_not_fit_and_have_no_worker_of_this_version_are_named(sound, redis_client, item, slot_report):
    made = sound()
    ledger = Ledger(redis_client, made.queue)
    ledger.accept("job", [item()], record={})
    claim = ledger.claim_next(["flux2"], slot="small", boot="b", warm="base")
    ledger.workers.beat("big", slot_report(features="large", memory_bytes=str(80 * 2**30)))
    full = ItemError(code="out_of_memory", message="full", retryable=False)
    ledger.release_too_large(claim, memory_bytes=24 * 2**30, error=full, too_large=full)
    assert "queue" not in report(made)
    # It stops, and a worker of an earlier version is left.
    ledger.workers.remove("big")
    ledger.workers.beat("old", slot_report())

    found = report(made)["queue"]

    assert found.detail == "1 item of flux2+large is queued, but no worker serves it"
    assert "`+sigmas` or `+large`, one of this version" in found.remedy


def test_webhooks_that_cannot_be_signed_are_named(sound, redis_client):
    redis_client.zadd(keys.OUTBOX, {"job": 0})

    assert "cannot be signed" in report(sound())["webhooks"].detail


def test_the_command_prints_a_table_or_json_and_exits_by_the_worst(monkeypatch, sound):
    made = sound(adapters={"root": "nowhere"})
    monkeypatch.setattr("shared.settings.Settings", lambda: made)

    table = CliRunner().invoke(app, ["doctor"])
    lines = CliRunner().invoke(app, ["doctor", "--json"])

    assert table.exit_code == lines.exit_code == 1
    assert "FAILED" in table.output
    assert {json.loads(line)["state"] for line in lines.output.splitlines()} >= {"ok", "failed"}


@pytest.mark.parametrize(
    ("api", "state", "words"),
    [
        ({}, "ok", "only this host reaches 127.0.0.1"),
        ({"host": "0.0.0.0"}, "failed", "does not start on 0.0.0.0 without an API key"),
        ({"host": "0.0.0.0", "insecure": True}, "warning", "whoever reaches 0.0.0.0 may do everything"),
        ({"host": "0.0.0.0", "trusted_proxies": "10.0.0.1"}, "ok", "that a trusted proxy names"),
    ],
)
def test_an_api_without_keys_is_judged_by_its_address(redis_client, sound, api, state, words):
    made = sound(api=api)

    [found] = check_keys(Ledger(redis_client, made.queue), made.api)

    assert found.state == state
    assert words in found.detail


def test_keys_that_end_and_the_lack_of_an_admin_are_named(redis_client, sound, clock):
    made = sound(api={"host": "0.0.0.0"})
    ledger = Ledger(redis_client, made.queue, clock_ms=clock)

    def findings():
        return [(found.state, found.detail) for found in check_keys(ledger, made.api)]

    def add(name, *, days=None, role="submit"):
        text, now_ms = KeyText.make(), ledger.now_ms()
        expires_ms = None if days is None else now_ms + days * 86_400_000
        ledger.api_keys.add(
            KeyRecord(
                text.key_id,
                name,
                "default",
                frozenset([role]),
                SecretHash.of(text.secret),
                now_ms,
                expires_ms=expires_ms,
            )
        )
        return text.key_id

    alice = add("alice", days=8)
    assert findings() == [("warning", "1 active, and none has the role admin: nobody sees the jobs of every tenant")]
    operator = add("operator", role="admin")
    assert findings() == [("ok", "2 active")]
    clock.advance(2 * 86_400)
    assert findings() == [("warning", f"{alice} (alice) expires in 6.0 days"), ("ok", "2 active")]
    clock.advance(7 * 86_400)
    ledger.api_keys.revoke(operator)
    assert findings() == [
        ("warning", f"{alice} (alice) expired 1.0 days ago"),
        ("failed", "1 expired, 1 revoked: every caller is refused"),
    ]
    clock.advance(7 * 86_400)
    assert findings() == [("failed", "1 expired, 1 revoked: every caller is refused")]
