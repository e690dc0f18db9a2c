"""API keys over real HTTP: who comes in, what each role may do, how long a revoked key works, and wrong keys."""

import json
import socket
import time
from dataclasses import replace

import pytest

from api.doors import failures, keyring
from shared.cli import main
from shared.errors import UnsafeAddress
from shared.keys.secret import KeyText, SecretHash
from shared.ledger import Ledger
from shared.local.ports import pick_free_port
from shared.local.stack import Stack
from shared.redis_url import RedisUrl
from shared.settings import QueueSettings

REQUEST = {"model": "flux2", "prompts": [{"prompt": "a cat", "width": 64, "height": 64}], "loras": []}
CALLS = [
    ("POST", "/v1/inference"),
    ("POST", "/v1/replays"),
    ("GET", "/v1/requests"),
    ("GET", "/v1/requests/x"),
    ("GET", "/v1/requests/x/status"),
    ("GET", "/v1/requests/x/result"),
    ("POST", "/v1/requests/x/cancel"),
    ("GET", "/v1/adapters"),
    ("PUT", "/v1/adapters/x"),
    ("DELETE", "/v1/adapters/x"),
    ("GET", "/v1/models"),
    ("GET", "/v1/usage"),
    ("GET", "/v1/caller"),
    ("GET", "/v1/keys"),
    ("POST", "/v1/keys"),
    ("DELETE", "/v1/keys/x"),
    ("GET", "/metrics"),
    ("GET", "/v1/unknown"),
]

READS = {"GET /v1/requests", "GET /v1/adapters", "GET /v1/models", "GET /v1/usage", "GET /v1/caller"}


def key_id(headers):
    return headers["Authorization"].split("_")[1]


def test_without_any_key_an_api_on_loopback_lets_everybody_in(api):
    answer = api.http.post("/v1/inference", json=REQUEST)

    assert answer.status_code == 202
    assert api.http.get("/metrics").status_code == 200
    # A key that is sent by habit does no harm.
    assert api.http.get("/v1/requests", headers={"Authorization": "Bearer x"}).json()["data"][0]["status"] == "in_queue"


def test_from_the_first_key_on_every_call_needs_one(api, make_key):
    key = make_key(roles=["admin"])

    for method, path in CALLS:
        refused = api.http.request(method, path)
        assert (refused.status_code, refused.json()["code"]) == (401, "UNAUTHORIZED"), path
        assert refused.headers["www-authenticate"] == "Bearer"
        assert refused.headers["content-type"] == "application/problem+json"
        assert api.http.request(method, path, headers=key).status_code not in (401, 403), path
    assert api.http.get("/health").status_code == 200
    for path in ("/openapi.json", "/docs", "/docs/start.js", "/redoc", "/", "/console/main.js"):
        assert api.http.get(path).status_code == 200


def test_ready_tells_a_caller_without_a_key_no_more_than_a_load_balancer_needs(api, make_key):
    report = dict.fromkeys(("revision", "precision", "engines", "warm", "item"), "") | {"base_drift": "0"}
    api.ledger.workers.beat("secret-host/cuda:0", {**report, "model": "flux2", "state": "ready", "device": "H200"})
    key = make_key()

    open_answer, answer = api.http.get("/ready"), api.http.get("/ready", headers=key)

    assert open_answer.status_code == answer.status_code == 200
    assert answer.json()["workers"] == 1
    assert answer.json()["slots"][0]["name"] == "secret-host/cuda:0"
    assert "secret-host" not in open_answer.text
    assert open_answer.json()["checks"] == answer.json()["checks"]


def test_a_body_is_not_read_before_its_sender_is_known(api, make_key):
    make_key()
    host, port = api.url.removeprefix("http://").split(":")

    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(
            b"POST /v1/inference HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 60000\r\n\r\n{"
        )
        answer = connection.recv(4096)

    assert answer.startswith(b"HTTP/1.1 401")


@pytest.mark.parametrize(
    ("roles", "allowed"),
    [
        (["read"], READS),
        (["submit"], {"POST /v1/inference"}),
        (["admin"], {*READS, "POST /v1/inference", "GET /v1/keys", "GET /metrics"}),
        ([], set()),
    ],
)
def test_a_role_allows_its_calls_alone(api, make_key, roles, allowed):
    key = make_key(roles=roles)

    for method, path in CALLS:
        if "x" in path or "unknown" in path:
            continue
        answer = api.http.request(method, path, headers=key, json=REQUEST if method == "POST" else None)
        if f"{method} {path}" in allowed:
            assert answer.status_code in (200, 202), (path, answer.text)
        elif path != "/v1/replays" and (method, path, "admin" in roles) != ("POST", "/v1/keys", True):
            assert (answer.status_code, answer.json()["code"]) == (403, "FORBIDDEN"), path
            assert "role" in answer.json()["detail"]


@pytest.mark.parametrize("metrics", ["open", "off"])
def test_the_metrics_have_their_own_switch(api, serve_api, make_key, metrics):
    make_key()
    settings = api.settings.model_copy(update={"api": api.settings.api.model_copy(update={"metrics": metrics})})

    with serve_api(settings) as other:
        answer = other.http.get("/metrics")

    assert answer.status_code == {"open": 200, "off": 401}[metrics]


@pytest.mark.parametrize(
    "sent",
    [
        "Bearer",
        "Bearer flux2_",
        "Basic Zmx1eDI6eA==",
        "Bearer flux2_000000000000_" + 64 * "0",
        "Bearer flux2_00000000000\u00e9_" + 64 * "0",
        "Bearer " + 8000 * "x",
    ],
)
def test_what_is_no_key_is_refused(api, make_key, sent):
    make_key()

    answer = api.http.get("/v1/requests", headers={"Authorization": sent.encode("latin-1")})

    assert (answer.status_code, answer.json()["code"]) == (401, "UNAUTHORIZED")


def test_every_part_of_the_secret_counts(api, make_key):
    key = make_key()["Authorization"]
    swapped = key[:-1] + ("0" if key[-1] != "0" else "1")

    for wrong in (swapped, key[:-1], key + "0", key.upper()):
        assert api.http.get("/v1/requests", headers={"Authorization": wrong}).status_code == 401
    assert api.http.get("/v1/requests", headers={"Authorization": key}).status_code == 200
    assert api.http.get("/v1/requests", headers={"Authorization": key.replace("Bearer", "bearer")}).status_code == 200


def test_a_key_expires_by_the_clock_of_redis(api, make_key, wait_until):
    key = make_key(expires_in_ms=400)
    assert api.http.get("/v1/requests", headers=key).status_code == 200

    answer = wait_until(
        lambda: (found := api.http.get("/v1/requests", headers=key)).status_code == 401 and found, what="its end"
    )

    assert "has expired" in answer.json()["detail"]


def test_a_revoked_key_works_no_longer_than_its_record_is_fresh(api, make_key, monkeypatch, wait_until):
    monkeypatch.setattr(keyring, "FRESH_S", 0.5)
    key = make_key()
    assert api.http.get("/v1/requests", headers=key).status_code == 200

    began_s = time.monotonic()
    assert api.ledger.api_keys.revoke(key_id(key))
    answer = wait_until(
        lambda: (found := api.http.get("/v1/requests", headers=key)).status_code == 401 and found, what="its end"
    )

    assert time.monotonic() - began_s < 5
    assert "was revoked" in answer.json()["detail"]
    # The last key is gone, and the API is not open for that.
    assert api.http.get("/v1/requests").status_code == 401


def test_a_rotated_key_has_two_secrets_for_as_long_as_asked(api, make_key):
    key, now_ms = make_key(tenant="a"), api.ledger.now_ms()
    fresh = KeyText.make(key_id(key))
    new = {"Authorization": f"Bearer {fresh}"}
    record = api.ledger.api_keys.find(key_id(key))

    api.ledger.api_keys.rotate(record, SecretHash.of(fresh.secret), previous_until_ms=now_ms + 60_000)
    statuses = [api.http.get("/v1/requests", headers=each).status_code for each in (key, new)]
    api.ledger.api_keys.rotate(record, SecretHash.of(fresh.secret), previous_until_ms=now_ms - 1)
    statuses += [api.http.get("/v1/requests", headers=each).status_code for each in (key, new)]

    assert statuses == [200, 200, 401, 200]


def test_a_key_with_a_limit_of_a_later_version_is_refused(api, make_key, redis_client, caplog):
    key = make_key()
    redis_client.hset(f"flux2:key:{key_id(key)}", "limits", '{"colours": 3}')

    assert api.http.get("/v1/requests", headers=key).status_code == 401


def test_too_many_wrong_keys_from_an_address_are_not_looked_at(api, make_key, redis_client):
    known, other = make_key(), make_key()
    wrong = {"Authorization": f"Bearer {KeyText.make()}"}
    assert api.http.get("/v1/requests", headers=known).status_code == 200
    # The minute may end in between, once.
    answers = [api.http.get("/v1/requests", headers=wrong) for _ in range(2 * failures.MOST_PER_MINUTE + 1)]

    blocked = answers[-1]
    assert {answer.status_code for answer in answers} == {401, 429}
    assert blocked.json()["code"] == "too_many_failures"
    assert 1 <= int(blocked.headers["retry-after"]) <= 60
    # The right key of a caller who was here before still works; a new one could be a guess.
    assert api.http.get("/v1/requests", headers=known).status_code == 200
    assert api.http.get("/v1/requests", headers=other).status_code == 429
    assert [key for key in redis_client.keys("*") if not key.startswith("flux2:")] == []


def test_while_nobody_knows_whether_there_are_keys_nobody_comes_in(api, serve_api):
    away = RedisUrl.parse(f"redis://127.0.0.1:{pick_free_port()}/0")
    settings = api.settings.model_copy(update={"redis": api.settings.redis.model_copy(update={"url": away})})

    with serve_api(settings) as served:
        answers = {path: served.http.get(path) for path in ("/v1/adapters", "/v1/requests", "/health", "/ready")}

    assert {path: answer.status_code for path, answer in answers.items()} == {
        "/v1/adapters": 503,
        "/v1/requests": 503,
        "/health": 200,
        "/ready": 503,
    }
    assert answers["/v1/adapters"].json()["code"] == "ledger_unavailable"


def test_a_proxy_that_is_trusted_names_the_tenant(api, serve_api, make_key, settings):
    make_key()
    trusting = api.settings.model_copy(update={"api": settings(api={"trusted_proxies": "127.0.0.0/8"}).api})
    name = {"X-Tenant": "acme"}

    refused = api.http.get("/v1/requests", headers=name)
    with serve_api(trusting) as proxied:
        accepted = proxied.http.post("/v1/inference", json=REQUEST, headers=name)
        mine = proxied.http.get("/v1/requests", headers=name).json()["data"]
        others = proxied.http.get("/v1/requests", headers={"X-Tenant": "other"}).json()["data"]
        nameless = proxied.http.get("/v1/requests")
        unsound = proxied.http.get("/v1/requests", headers={"X-Tenant": "../x"})
        metrics = proxied.http.get("/metrics", headers=name)

    assert refused.status_code == nameless.status_code == 401
    assert [job["request_id"] for job in mine] == [accepted.json()["request_id"]]
    assert others == []
    assert unsound.status_code == 400
    assert metrics.status_code == 403


def test_a_trusted_proxy_may_pass_on_what_the_caller_showed_to_it(api, serve_api, make_key, settings):
    key = make_key(tenant="other")
    trusting = api.settings.model_copy(update={"api": settings(api={"trusted_proxies": "127.0.0.0/8"}).api})
    name = {"X-Tenant": "acme"}

    with serve_api(trusting) as proxied:
        job = proxied.http.post("/v1/inference", json=REQUEST, headers=name).json()["request_id"]
        for passed_on in ("Basic dTpw", "Bearer eyJhbGciOiJIUzI1NiJ9.e30.x"):
            headers = {**name, "Authorization": passed_on}
            assert proxied.http.get(f"/v1/requests/{job}", headers=headers).status_code == 200
            assert proxied.http.get("/v1/requests", headers={"Authorization": passed_on}).status_code == 401
        # A key is never ignored, right or wrong.
        assert proxied.http.get(f"/v1/requests/{job}", headers={**name, **key}).status_code == 404
        wrong = {"Authorization": key["Authorization"][:-4] + "zzzz"}
        assert proxied.http.get(f"/v1/requests/{job}", headers={**name, **wrong}).status_code == 401
        two = [("X-Tenant", "acme"), ("X-Tenant", "other")]
        assert proxied.http.get("/v1/requests", headers=two).status_code == 400


def test_a_proxy_that_only_ends_tls_states_the_scheme_and_no_tenant(api, serve_api, make_key, monkeypatch):
    key = make_key()
    sent = {**key, "X-Forwarded-Proto": "https", "X-Tenant": "acme"}
    urls = [api.http.post("/v1/inference", json=REQUEST, headers=sent).json()["status_url"]]
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "10.9.9.9")
    with serve_api(api.settings) as other:
        urls.append(other.http.post("/v1/inference", json=REQUEST, headers=sent).json()["status_url"])
        nameless = other.http.get("/v1/requests", headers={"X-Tenant": "acme"})

    assert [url.partition(":")[0] for url in urls] == ["https", "http"]
    assert nameless.status_code == 401


def test_a_full_redis_still_serves_reads_to_a_caller_with_a_key(api, make_key, redis_client):
    job = api.http.post("/v1/inference", json=REQUEST).json()["request_id"]
    key = make_key()
    redis_client.config_set("maxmemory", 1)
    try:
        answer = api.http.get(f"/v1/requests/{job}", headers=key)
        refused = api.http.get(f"/v1/requests/{job}", headers={"Authorization": "Bearer flux2_x"})
    finally:
        redis_client.config_set("maxmemory", 0)

    assert (answer.status_code, refused.status_code) == (200, 401)


def test_a_key_without_its_scheme_is_not_repeated(api, make_key):
    key = make_key()["Authorization"].removeprefix("Bearer ")

    answer = api.http.get("/v1/requests", headers={"Authorization": key})

    assert answer.status_code == 401
    assert key[:19] not in answer.text


def test_a_key_has_its_own_tenant_whatever_the_header_says(api, make_key):
    key = make_key(tenant="acme")

    job = api.http.post("/v1/inference", json=REQUEST, headers={**key, "X-Tenant": "other"}).json()["request_id"]

    assert api.ledger.redis.hmget(f"flux2:job:{job}", "tenant", "key") == ["acme", key_id(key)]


def test_web_pages_of_other_sites_cannot_use_an_api_without_keys(api, make_key):
    evil = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
    calls = [
        ("POST", "/v1/inference", {"json": REQUEST}),
        ("PUT", "/v1/adapters/x.safetensors", {"content": b"x"}),
        ("DELETE", "/v1/adapters/x.safetensors", {}),
        ("POST", "/v1/requests/x/cancel", {}),
        ("GET", "/v1/requests", {}),
        ("GET", "/docs", {}),
    ]

    for method, path, body in calls:
        for headers in (evil, {"Host": "evil.example:8000"}):
            answer = api.http.request(method, path, headers=headers, **body)
            assert (answer.status_code, answer.json()["code"]) == (403, "SENDER_REFUSED"), (path, headers)
    assert api.ledger.jobs(before=None, limit=1).jobs == ()
    form = api.http.post("/v1/requests/x/cancel", headers={"Content-Type": "text/plain"}, content=b"")
    assert form.status_code == 415
    # A page has no key, so nothing of this is needed with keys.
    assert api.http.get("/v1/requests", headers={**evil, **make_key(), "Host": "any.example"}).status_code == 200


def test_pages_of_listed_origins_may_call_and_no_others(api, serve_api, settings):
    listing = api.settings.model_copy(update={"api": settings(api={"cors_origins": "https://console.example"}).api})
    ask = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,prefer",
    }

    plain = api.http.options("/v1/inference", headers={"Origin": "https://console.example", **ask})
    with serve_api(listing) as listed:
        granted = listed.http.options("/v1/inference", headers={"Origin": "https://console.example", **ask})
        answer = listed.http.get("/v1/requests", headers={"Origin": "https://console.example"})
        denied = listed.http.options("/v1/inference", headers={"Origin": "https://evil.example", **ask})

    assert "access-control-allow-origin" not in plain.headers
    assert granted.status_code == answer.status_code == 200
    assert granted.headers["access-control-allow-origin"] == "https://console.example"
    assert answer.headers["access-control-allow-origin"] == "https://console.example"
    assert "Preference-Applied" in answer.headers["access-control-expose-headers"]
    assert "access-control-allow-origin" not in denied.headers


def test_answers_have_headers_that_bind_browsers(api):
    answer, docs = api.http.get("/v1/models"), api.http.get("/docs")

    assert answer.headers["x-content-type-options"] == docs.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    assert docs.headers["content-security-policy"].startswith("default-src 'self'")
    assert docs.headers["x-frame-options"] == "DENY"
    assert api.http.get("/v1/requests/unknown").headers["referrer-policy"] == "no-referrer"


def run(monkeypatch, capsys, *arguments):
    """Run a command of flux2; return its exit code, output and messages."""
    monkeypatch.setattr("sys.argv", ["flux2", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    captured = capsys.readouterr()
    return ended.value.code, captured.out, captured.err


def test_the_commands_make_list_change_rotate_and_revoke_keys(api, redis_url, monkeypatch, capsys, redis_client):
    monkeypatch.setenv("FLUX2_REDIS_URL", redis_url)
    monkeypatch.setattr(keyring, "FRESH_S", 0.0)

    def flux2(*arguments):
        return run(monkeypatch, capsys, "keys", *arguments)

    def status(key):
        return api.http.get("/v1/requests", headers={"Authorization": f"Bearer {key}"}).status_code

    assert "no keys" in flux2("list")[1]
    code, out, err = flux2(
        "create", "alice", "--tenant", "acme", "--days", "30", "--max-steps", "30", "--adapter", "a/*"
    )
    key, made = out.strip(), out.split("_")[1]
    assert (code, status(key)) == (0, 200)
    assert "shown once" in err
    assert key.split("_")[2] not in json.dumps(
        [redis_client.hgetall(name) for name in redis_client.keys("flux2:key:*")]
    )

    listed = json.loads(flux2("list", "--json")[1])
    assert (listed["id"], listed["tenant"], listed["state"], listed["roles"]) == (
        made,
        "acme",
        "active",
        ["read", "submit"],
    )
    assert listed["limits"] == {"max_steps": 30, "adapters": ["a/*"]}
    assert listed["used_on"] is not None

    updated = json.loads(
        flux2(
            "update",
            made,
            "--days",
            "0.001",
            "--max-steps",
            "20",
            "--model",
            "flux2",
            "--unlimited",
            "adapter",
            "--json",
        )[1]
    )
    assert updated["limits"] == {"max_steps": 20, "models": ["flux2"]}
    assert (updated["expires_ms"] < listed["expires_ms"], updated["roles"]) == (True, ["read", "submit"])
    assert flux2("update", made, "--role", "submit", "--no-expiry") == (0, f"updated {made}\n", "")
    assert status(key) == 403
    assert flux2("update", made, "--role", "read")[0] == 0
    assert json.loads(flux2("list", "--json")[1]) == {**updated, "roles": ["read"], "expires_ms": None}

    rotated = json.loads(flux2("rotate", made, "--json")[1])["key"]
    assert (status(key), status(rotated)) == (401, 200)
    assert flux2("revoke", made)[0] == 0
    assert status(rotated) == 401
    assert "revoked" in flux2("list")[1]

    assert flux2("revoke", "000000000000")[0] == 1
    assert "is revoked for good" in flux2("rotate", made)[2]
    assert "is revoked for good" in flux2("update", made, "--days", "9")[2]
    for wrong in (
        [],
        ["--unlimited", "speed"],
        ["--max-steps", "9", "--unlimited", "max-steps"],
        ["--days", "1", "--no-expiry"],
    ):
        assert flux2("update", made, *wrong)[0] == 2, wrong
    assert flux2("create", "x", "--role", "king")[0] == 2
    assert flux2("create", "x", "--tenant", "../x")[0] == 2
    assert flux2("create", "x", "--model", "flux9")[0] == 2


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3"])
def test_an_api_for_other_hosts_does_not_start_without_a_key(redis_client, redis_url, settings, host):
    from api.doors.address import require_safe_address
    from shared.errors import UnsafeAddress

    with pytest.raises(UnsafeAddress, match="flux2 keys create"):
        require_safe_address(settings(redis={"url": redis_url}, api={"host": host}))


def test_an_update_leaves_what_another_command_changed_since(redis_url, make_key):
    api_keys = Ledger.connect(redis_url, QueueSettings(), timeout_s=5).api_keys
    key_id = make_key(roles=["submit", "admin"])["Authorization"].split("_")[1]
    before = api_keys.find(key_id)

    api_keys.update(before, replace(before, roles=frozenset(["read"])))
    api_keys.revoke(key_id)
    api_keys.update(before, replace(before, expires_ms=5))

    after = api_keys.find(key_id)
    assert (after.roles, after.expires_ms, after.revoked_ms is None) == ({"read"}, 5, False)
    api_keys.update(after, replace(after, expires_ms=None))
    assert api_keys.find(key_id) == replace(after, expires_ms=None)


def test_a_stack_for_other_hosts_says_how_its_first_key_is_made(
    redis_client, redis_url, settings, make_key, monkeypatch, tmp_path
):
    ledger = Ledger.connect(redis_url, QueueSettings(), timeout_s=5)
    monkeypatch.setattr(Stack, "ledger", lambda stack: ledger)
    made = settings(api={"host": "0.0.0.0"})

    with pytest.raises(UnsafeAddress, match=f"flux2 keys create NAME --data {tmp_path}`"):
        Stack(tmp_path, made)._require_safe_address()

    Stack(tmp_path, made, insecure=True)._require_safe_address()
    Stack(tmp_path, settings())._require_safe_address()
    make_key()
    Stack(tmp_path, made)._require_safe_address()


@pytest.mark.parametrize(
    "api", [{"host": "127.0.0.1"}, {"host": "localhost"}, {"host": "::1"}, {"host": "0.0.0.0", "insecure": True}]
)
def test_an_api_on_loopback_or_that_is_said_to_be_insecure_starts(redis_client, redis_url, settings, api):
    from api.doors.address import require_safe_address

    require_safe_address(settings(redis={"url": redis_url}, api=api))


def test_an_api_for_other_hosts_starts_with_a_key_and_then_needs_it(api, make_key, serve_api, settings, redis_client):
    from api.doors.address import require_safe_address

    make_key()
    exposed = api.settings.model_copy(update={"api": settings(api={"host": "0.0.0.0"}).api})
    require_safe_address(exposed)
    redis_client.flushall()

    with serve_api(exposed) as served:
        # Even if Redis lost the keys.
        assert served.http.get("/v1/requests").status_code == 401
