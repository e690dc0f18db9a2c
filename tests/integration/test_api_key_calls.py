"""/v1/keys: make, list and revoke keys over HTTP."""

import logging

import pytest

from api.doors import keyring
from shared.ledger import keys

LIMITS = {"queued_items": None, "items_per_day": None, "megapixel_steps_per_day": None, "max_megapixels": None,
          "max_steps": None, "models": [], "engines": [], "adapters": []}  # fmt: skip


@pytest.fixture
def admin(api, make_key):
    """The headers of a key that makes others."""
    return make_key(tenant="operators", roles=["admin"])


def make(api, headers=None, **fields):
    return api.http.post("/v1/keys", json={"name": "alice", **fields}, headers=headers)


def send(key):
    return {"Authorization": f"Bearer {key}"}


def test_a_key_that_was_made_works_within_its_limits(api, admin):
    answer = make(api, admin, tenant="studio", roles=["read"], expires_in_days=2, limits={"max_steps": 30})

    assert answer.status_code == 201, answer.text
    made = answer.json()
    caller = api.http.get("/v1/caller", headers=send(made["key"])).json()
    assert (caller["tenant"], caller["roles"], caller["key_id"]) == ("studio", ["read"], made["id"])
    record = api.ledger.api_keys.find(made["id"])
    assert (record.name, record.limits.max_steps) == ("alice", 30)
    assert record.expires_ms - record.created_ms == 2 * 86_400_000


def test_the_secret_is_in_one_answer_that_nobody_stores_and_in_no_log(api, admin, caplog):
    caplog.set_level(logging.INFO, "flux2")

    answer = make(api, admin)

    secret = answer.json()["key"].rpartition("_")[2]
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers.get_list("cache-control") == ["no-store"]
    assert secret not in api.http.get("/v1/keys", headers=admin).text
    fields = api.services.ledger.api_keys.read(answer.json()["id"])[0]
    assert secret not in str(fields)
    [line] = [record for record in caplog.records if record.message == "a key was made"]
    assert (line.key, line.by) == (answer.json()["id"], admin["Authorization"].split("_")[1])
    assert secret not in caplog.text


def test_keys_are_listed_in_pages_with_everything_but_their_secrets(api, admin):
    made = [make(api, admin, name=f"key {number}").json() for number in range(3)]
    api.http.delete(f"/v1/keys/{made[0]['id']}", headers=admin)

    first = api.http.get("/v1/keys?limit=2", headers=admin).json()
    second = api.http.get(f"/v1/keys?limit=2&cursor={first['next_cursor']}", headers=admin).json()

    listed = first["data"] + second["data"]
    assert [line["name"] for line in listed] == ["test", "key 0", "key 1", "key 2"]
    assert [line["state"] for line in listed] == ["active", "revoked", "active", "active"]
    assert (first["has_more"], second["has_more"], second["next_cursor"]) == (True, False, None)
    line = made[2] | {}
    del line["key"]
    assert listed[3] == line
    assert line == {
        "id": line["id"],
        "name": "key 2",
        "tenant": "default",
        "roles": ["read", "submit"],
        "state": "active",
        "created_at": line["created_at"],
        "expires_at": None,
        "revoked_at": None,
        "used_on": None,
        "limits": LIMITS,
    }


def test_a_key_with_a_limit_of_a_later_version_is_listed_and_can_be_revoked(api, admin, redis_client):
    key_id = make(api, admin).json()["id"]
    redis_client.hset(keys.api_key(key_id), "limits", '{"dreams_per_day":3}')

    [_, line] = api.http.get("/v1/keys", headers=admin).json()["data"]
    revoked = api.http.delete(f"/v1/keys/{key_id}", headers=admin).json()

    assert (line["limits"], line["state"]) == (None, "active")
    assert revoked["state"] == "revoked"


def test_a_revoked_key_is_refused_and_stays_so(api, admin):
    made = make(api, admin).json()

    for _ in range(2):
        answer = api.http.delete(f"/v1/keys/{made['id']}", headers=admin)
        assert (answer.status_code, answer.json()["state"]) == (200, "revoked")

    assert api.http.get("/v1/caller", headers=send(made["key"])).status_code == 401


def test_a_key_does_not_revoke_itself_and_an_unknown_one_is_named(api, admin):
    own = admin["Authorization"].split("_")[1]

    answers = [api.http.delete(f"/v1/keys/{key_id}", headers=admin) for key_id in (own, "000000000000")]

    assert [(answer.status_code, answer.json()["code"]) for answer in answers] == [
        (409, "KEY_IN_USE"),
        (404, "KEY_NOT_FOUND"),
    ]
    assert api.http.get("/v1/caller", headers=admin).status_code == 200


@pytest.mark.parametrize(
    ("field", "value", "path"),
    [
        ("name", "", "name"),
        ("name", "a\x1b[31m", "name"),
        ("tenant", "../etc", "tenant"),
        ("roles", [], "roles"),
        ("roles", ["owner"], "roles[0]"),
        ("expires_in_days", 0, "expires_in_days"),
        ("limits", {"max_steps": 0}, "limits.max_steps"),
        ("limits", {"models": ["flux9"]}, "limits.models"),
        ("limits", {"engines": ["warp"]}, "limits.engines"),
        ("limits", {"dreams_per_day": 3}, "limits.dreams_per_day"),
        ("colour", "red", "colour"),
    ],
)
def test_a_field_that_cannot_be_is_named_and_no_key_is_made(api, admin, field, value, path):
    answer = make(api, admin, **{field: value})

    assert (answer.status_code, answer.json()["errors"][0]["path"]) == (422, path), answer.text
    assert len(api.ledger.api_keys.all()) == 1


def test_on_loopback_any_caller_makes_the_first_key_which_must_be_able_to_make_others(api, monkeypatch):
    monkeypatch.setattr(keyring, "FRESH_S", 0.0)

    refused = make(api, roles=["submit", "read"])
    answer = make(api, roles=["admin"])

    assert (refused.status_code, refused.json()["errors"][0]["path"]) == (400, "roles")
    assert answer.status_code == 201
    assert make(api, roles=["admin"]).status_code == 401
    assert make(api, send(answer.json()["key"])).status_code == 201


def test_a_caller_whom_a_process_still_takes_for_anonymous_makes_no_second_key(api, make_key, monkeypatch):
    # As in the seconds in which a process has not seen the first key.
    monkeypatch.setattr(keyring, "FRESH_S", 60.0)
    api.http.get("/v1/caller")
    make_key(roles=["admin"])

    answer = make(api, roles=["admin"])

    assert (answer.status_code, answer.json()["code"]) == (401, "UNAUTHORIZED")
    assert len(api.ledger.api_keys.all()) == 1


def test_an_api_that_listens_for_other_hosts_lets_nobody_make_its_first_key(api, serve_api):
    changed = api.settings.api.model_copy(update={"host": "0.0.0.0", "insecure": True})

    with serve_api(api.settings.model_copy(update={"api": changed})) as other:
        answer = make(other, roles=["admin"])

    assert (answer.status_code, answer.json()["code"]) == (403, "FIRST_KEY_REFUSED")
    assert not api.ledger.api_keys.any()


@pytest.mark.parametrize("header", ["X-Forwarded-For", "X-Real-IP", "Forwarded", "Via"])
def test_nobody_makes_the_first_key_through_a_proxy_on_the_same_host(header, api):
    answer = make(api, {header: "127.0.0.1"}, roles=["admin"])

    assert (answer.status_code, answer.json()["code"]) == (403, "FIRST_KEY_REFUSED")
    assert not api.ledger.api_keys.any()


def test_a_page_of_another_site_makes_no_first_key(api):
    answer = make(api, {"Origin": "https://example.com", "Sec-Fetch-Site": "cross-site"}, roles=["admin"])

    assert (answer.status_code, answer.json()["code"]) == (403, "SENDER_REFUSED")
    assert not api.ledger.api_keys.any()
