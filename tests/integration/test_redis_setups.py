"""Each way to run Redis that people have: it works, or the doctor, the start and `/ready` give the reason."""

import contextlib
import os
import re
import socketserver
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import pytest
import redis

from shared.celery_app import make_celery, send_wakeups
from shared.doctor import run_checks
from shared.errors import LedgerForbidden, LedgerRefused, LedgerUnusable
from shared.ledger import Ledger, keys, lua
from shared.ledger.permissions import COMMANDS
from shared.local.redis_server import RedisServer
from shared.settings import QueueSettings

ROOT = Path(__file__).parents[2]
# Longest time that `/ready` may show that Redis is away after it came back.
AGREED_S = 1.0
CLUSTER = "Redis runs in cluster mode"


class ConfiguredRedis(RedisServer):
    """A Redis with more options on its command line."""

    def __init__(self, data, options):
        super().__init__(data)
        self._options = options

    def _command(self):
        return [*super()._command(), *self._options]


class Sentinel(RedisServer):
    """A Sentinel that watches nothing."""

    def _command(self):
        program, *_ = super()._command()
        file = self.folder / "sentinel.conf"
        file.write_text(f"port {self.port}\nbind 127.0.0.1\ndir {self.folder}\n")
        return [program, str(file), "--sentinel"]


class NotRedis(socketserver.StreamRequestHandler):
    """Answers each connection as a web server does, or with the line that its server holds."""

    def handle(self):
        with contextlib.suppress(OSError):
            while self.rfile.readline():
                self.wfile.write(self.server.line)


@pytest.fixture
def start_redis(tmp_path):
    """Start a Redis with options such as `--cluster-enabled yes`; it stops when the test ends."""
    with contextlib.ExitStack() as started:
        yield lambda options="": started.enter_context(
            ConfiguredRedis(tmp_path / f"data-{uuid.uuid4().hex}", options.split())
        )


@pytest.fixture
def at(settings, tmp_path):
    """Make settings of a service whose Redis is at a URL, with images in a folder."""

    def make(url, **sections):
        (tmp_path / "adapters").mkdir(exist_ok=True)
        return settings(
            redis={"url": url},
            storage={"backend": "directory", "directory": tmp_path / "objects"},
            adapters={"root": tmp_path / "adapters"},
            sources={"cache_dir": tmp_path / "cache"},
            **sections,
        )

    return make


@pytest.fixture
def user(redis_client, redis_url):
    """Make a user of Redis by the rules of its ACL; return the URL with its login."""

    def make(rules):
        redis_client.execute_command("ACL", "SETUSER", "limited", "reset", "on", ">pw", *rules.split())
        redis_client.execute_command("ACL", "LOG", "RESET")
        return redis_url.replace("redis://", "redis://limited:pw@")

    yield make

    redis_client.acl_deluser("limited")


def report(made):
    return {finding.name: finding for finding in run_checks(made)}


def failed(found):
    return {name for name, finding in found.items() if finding.state == "failed"}


def submit(api):
    return api.http.post("/v1/inference", json={"model": "flux2", "loras": [], "prompts": [{"prompt": "a fox"}]})


# ---- cluster mode


@pytest.fixture(params=["owns all slots", "owns no slot"])
def cluster(request, start_redis, wait_until):
    """A Redis Cluster of one node."""
    server = start_redis("--cluster-enabled yes")
    if request.param == "owns all slots":
        with redis.Redis(port=server.port, decode_responses=True) as client:
            client.execute_command("CLUSTER", "ADDSLOTS", *range(16_384))
            wait_until(lambda: "cluster_state:ok" in str(client.execute_command("CLUSTER", "INFO")), what="the cluster")
    return server


def test_cluster_mode_is_refused_with_its_reason_by_the_doctor_ready_and_each_call(cluster, at, serve_api):
    found = report(at(cluster.url))

    assert failed(found) == {"redis"}
    assert CLUSTER in found["redis"].detail
    assert "cluster-enabled no" in found["redis"].remedy
    assert found["storage"].state == "ok"
    with serve_api(at(cluster.url)) as api:
        for answer in (api.http.get("/ready"), submit(api), api.http.get("/v1/requests")):
            assert answer.status_code == 503
            assert CLUSTER in answer.text


@pytest.mark.parametrize("cluster", ["owns all slots"], indirect=True)
def test_the_api_and_a_worker_do_not_start_in_cluster_mode(cluster, at, tmp_path):
    from worker.serve import serve

    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "FLUX2_REDIS_URL": cluster.url}
    environment |= {"FLUX2_STORAGE_BACKEND": "directory", "FLUX2_API_PORT": "0"}
    command = [sys.executable, "-m", "shared.cli", "api"]

    ended = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60)

    assert ended.returncode == 1
    [line] = ended.stderr.splitlines()
    assert CLUSTER in line
    with pytest.raises(LedgerUnusable, match="cluster-enabled no"):
        serve(at(cluster.url, worker={"device": "cpu", "lock_dir": tmp_path}))


def test_the_probes_of_cluster_mode_have_different_slots(redis_client):
    first, second = (redis_client.execute_command("EXISTS", key) for key in keys.SLOT_PROBES)
    slots = {redis.crc.key_slot(key.encode()) for key in keys.SLOT_PROBES}

    assert (first, second) == (0, 0)
    assert len(slots) == 2


# ---- other servers that cannot hold the ledger


@pytest.fixture
def answering():
    """Serve one line to each line that a client sends; return the URL."""
    with contextlib.ExitStack() as started:

        def serve(line):
            server = started.enter_context(socketserver.ThreadingTCPServer(("127.0.0.1", 0), NotRedis))
            server.daemon_threads, server.line = True, line
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
            started.callback(server.shutdown)
            return f"redis://127.0.0.1:{server.server_address[1]}/0"

        yield serve


PROTECTED = b"-DENIED Redis is running in protected mode because no password is set. 1) Just disable it\r\n"
UNUSABLE = {
    "a database that Redis has not": ("no database of the number", "raise `databases`"),
    "a Sentinel": ("does not know EXISTS", "not a Sentinel"),
    "protected mode": ("Redis runs in protected mode", "set `requirepass`"),
    "a web server": ("is not Redis", "correct the host and the port"),
}


@pytest.mark.parametrize("what", UNUSABLE)
def test_a_server_that_cannot_hold_the_ledger_is_one_line_of_the_doctor_and_503_of_each_call(
    what, redis_url, answering, tmp_path, at, serve_api
):
    reason, remedy = UNUSABLE[what]
    with contextlib.ExitStack() as started:
        if what == "a database that Redis has not":
            url = re.sub(r"/\d*$", "/999", redis_url)
        elif what == "a Sentinel":
            url = started.enter_context(Sentinel(tmp_path)).url
        else:
            url = answering(PROTECTED if what == "protected mode" else b"HTTP/1.1 400 Bad Request\r\n")

        found = report(at(url))

        assert failed(found) == {"redis"}
        assert reason in found["redis"].detail
        assert remedy in found["redis"].remedy
        assert found["storage"].state == "ok"
        assert "wake-ups" not in found
        with pytest.raises(LedgerUnusable, match="; "):
            Ledger.connect(url, QueueSettings(), timeout_s=2).refuse_unusable()
        with serve_api(at(url)) as api:
            for answer in (api.http.get("/ready"), submit(api), api.http.get("/v1/requests")):
                assert answer.status_code == 503
                assert reason in answer.text


def test_commands_that_have_no_name_are_named_and_none_is_performed(start_redis):
    renamed = start_redis('--rename-command ZPOPMIN "" --rename-command HKEYS hidden')
    without = start_redis("--rename-command MULTI multiple")
    for server, names in ((renamed, "HKEYS, ZPOPMIN"), (without, "MULTI")):
        ledger = Ledger.connect(server.url, QueueSettings(), timeout_s=2)

        with pytest.raises(LedgerUnusable, match=f"does not know {names}; set it to a Redis 6.2 or later"):
            ledger.check_permissions()

        assert ledger.redis.keys() == []


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        ("max number of clients reached", "raise maxclients"),
        ("LOADING Redis is loading the dataset in memory", "wait until Redis has read its data"),
    ],
)
def test_a_redis_that_answers_no_call_for_now_has_its_own_remedy(error, remedy, answering, at):
    found = report(at(answering(f"-{'ERR ' * error.startswith('max')}{error}\r\n".encode())))

    assert failed(found) == {"redis"}
    assert remedy in found["redis"].remedy


# ---- ACL users


@pytest.mark.parametrize("rules", ["~flux2:* &* +@all -@dangerous", "~flux2:* &* +@all -info -config"])
def test_without_info_and_config_the_service_works_and_two_warnings_say_what_is_unknown(rules, user, at, serve_api):
    made = at(user(rules))

    found = report(made)

    assert failed(found) == set()
    assert found["redis is durable"].state == "warning"
    assert "INFO is not allowed" in found["redis is durable"].detail
    assert re.fullmatch(r"(Redis|Valkey) \d+\.\d+\.\d+ allows every command and takes writes", found["redis"].detail)
    with serve_api(made) as api:
        answer = api.http.get("/ready")
        assert answer.status_code == 200
        assert any("INFO is not allowed" in warning for warning in answer.json()["warnings"])
        assert submit(api).status_code == 202


def test_without_info_an_item_of_a_dead_worker_comes_back(user, redis_client, item):
    ledger = Ledger.connect(user("~flux2:* &* +@all -@dangerous"), QueueSettings(), timeout_s=2)
    ledger.accept("job", [item()], record={})
    claim = ledger.claim_next(["flux2"], slot="gone", boot="b", warm="base")
    ledger.reap()
    redis_client.zadd(keys.LEASES, {claim.item_id: 1})

    reaped = ledger.reap()

    assert reaped.requeued == {"flux2": 1}
    assert not redis_client.exists(f"{keys.PREFIX}run_id")


def test_without_info_a_restart_counts_as_a_stall(start_redis, item, clock):
    server = start_redis()
    with redis.Redis(port=server.port) as client:
        client.execute_command("ACL", "SETUSER", "limited", "on", ">pw", "~flux2:*", "&*", "+@all", "-@dangerous")
    url = server.url.replace("redis://", "redis://limited:pw@")
    ledger = Ledger.connect(url, QueueSettings(), timeout_s=2)
    ledger = Ledger(ledger.redis, QueueSettings(), clock_ms=clock)
    ledger.accept("job", [item()], record={})
    ledger.claim_next(["flux2"], slot="alive", boot="b", warm="base")
    ledger.reap()

    # As long as a Redis is away that loads its file: no worker could renew its lease, which ended 5 s ago.
    clock.advance(20)
    reaped = ledger.reap()

    assert reaped.grace
    assert reaped.requeued == {}


def test_the_doctor_names_all_forbidden_commands_at_once_and_writes_nothing(user, redis_client, at):
    made = at(user("~flux2:* &* +@all -brpop -zpopmin -hset"))
    before = redis_client.dbsize()

    found = report(made)["redis"]

    assert found.detail.endswith("it may not run 'brpop', 'hset', 'zpopmin'")
    assert found.remedy == "allow it with ACL SETUSER, as docs/operations.md describes"
    assert redis_client.dbsize() == before


def test_the_doctor_tries_each_command_of_each_script_and_each_call():
    tried = {command[0].lower() for command in COMMANDS}
    scripts = {name.lower() for text in lua.scripts().values() for name in re.findall(r"redis\.call\('(\w+)'", text)}
    texts = [path.read_text() for path in (ROOT / "shared").glob("ledger/*.py")]
    calls = {name for text in texts for name in re.findall(r"\b(?:redis|pipe|client)\.([a-z]+)\(", text)}

    assert len(scripts) > 30
    assert scripts <= tried
    assert len(calls) > 15
    # `info` is only shown, and the others are redis-py's own.
    assert calls <= tried | {"info", "client", "pipeline", "multi", "execute"}


def test_a_command_and_a_user_whose_names_hold_key_are_not_taken_for_keys(redis_client, redis_url, at):
    redis_client.execute_command("ACL", "SETUSER", "monkey", "reset", "on", ">pw", "~flux2:*", "&*", "+@all", "-hkeys")
    try:
        found = report(at(redis_url.replace("redis://", "redis://monkey:pw@")))["redis"]
    finally:
        redis_client.acl_deluser("monkey")

    assert found.detail == "Redis refuses this user: it may not run 'hkeys'"


@pytest.mark.parametrize("rules", ["~* &* +@all -multi", "~* &* +@all -exec", "~* &* +@all -discard"])
def test_a_user_without_transactions_is_refused_and_no_command_is_performed(rules, user, redis_client):
    ledger = Ledger.connect(user(rules), QueueSettings(), timeout_s=2)

    with pytest.raises(LedgerForbidden, match=rules.rpartition("-")[2]):
        ledger.check_permissions()

    assert redis_client.keys() == []


def test_a_job_runs_from_submit_to_result_with_no_other_commands_than_the_doctor_tries(
    user, redis_client, at, serve_api, tmp_path, wait_until
):
    names = sorted({command[0].lower() for command in COMMANDS} | {"multi", "exec", "discard"})
    url = user("~flux2:* &* -@all " + " ".join(f"+{name}" for name in names))
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "FLUX2_REDIS_URL": url,
        "FLUX2_STORAGE_BACKEND": "directory",
        "FLUX2_STORAGE_DIRECTORY": str(tmp_path / "objects"),
        "FLUX2_WORKER_LOCK_DIR": str(tmp_path),
    }
    command = [sys.executable, "-m", "chaos.process", "worker", "gpu-0", "--history", str(tmp_path / "history")]
    with (
        serve_api(at(url)) as api,
        (tmp_path / "worker.log").open("wb") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=log) as worker,
    ):
        try:
            done = submit(api).json()["request_id"]
            ended = submit(api).json()["request_id"]
            api.http.post(f"/v1/requests/{ended}/cancel")
            wait_until(
                lambda: api.http.get(f"/v1/requests/{done}").json()["status"] == "succeeded", 60, what="the job's end"
            )
            assert api.http.get(f"/v1/requests/{done}/result").status_code == 200
            assert api.http.get("/v1/requests").status_code == 200
            assert api.http.get("/metrics").status_code == 200
            # Longer than an audit, which also forgets old jobs.
            wait_until(lambda: redis_client.exists(keys.AUDIT_LEADER), 20, what="an audit")
            assert failed(report(at(url))) == set()
        finally:
            worker.terminate()

    refused = {entry["object"] for entry in redis_client.acl_log()}
    # What redis-py tells a server about itself, and what is only shown: nothing of the service depends on these.
    assert refused <= {"client|setinfo", "client", "info", "config|get", "config"}


# ---- sockets, replicas, memory


def test_a_unix_socket_serves_the_ledger_and_celery(start_redis, tmp_path, at):
    path = tmp_path / "redis.sock"
    server = start_redis(f"--unixsocket {path}")
    url = f"unix://{path}?db=2"

    assert failed(report(at(url))) == set()
    with make_celery(url, side="api", timeout_s=2) as celery:
        assert send_wakeups(celery, "flux2", count=1) == 1
    with redis.Redis(port=server.port, db=2) as database:
        assert database.llen(keys.wake_list("flux2")) == 1


def ready(api, status):
    """Return the next answer of `/ready`, which must have this status."""
    answer = api.http.get("/ready")
    assert answer.status_code == status, answer.text
    return answer.json()


def test_ready_tells_at_once_that_redis_became_a_replica_and_a_master_again(start_redis, at, serve_api):
    server = start_redis()
    made = at(server.url)
    with serve_api(made) as api, redis.Redis(port=server.port) as client:
        job = submit(api).json()["request_id"]
        ready(api, 200)
        # Nobody listens there, so the replica keeps its data.
        client.replicaof("127.0.0.1", 1)

        not_ready = ready(api, 503)
        found = report(made)

        assert "replica" in not_ready["checks"]["redis"]
        assert any("point FLUX2_REDIS_URL at the master" in warning for warning in not_ready["warnings"])
        assert found["redis"].state == "failed"
        assert found["redis"].remedy == "point FLUX2_REDIS_URL at the master"
        assert submit(api).status_code == 503
        # A replica still reads: the refused write must not keep a caller from the results.
        assert api.http.get(f"/v1/requests/{job}").status_code == 200
        client.replicaof("NO", "ONE")
        ready(api, 200)
        assert submit(api).status_code == 202


def test_ready_tells_at_once_that_the_memory_is_full(redis_client, redis_url, at, serve_api):
    made = at(redis_url)
    with serve_api(made) as api:
        job = submit(api).json()["request_id"]
        ready(api, 200)
        redis_client.config_set("maxmemory", "1")
        try:
            not_ready = ready(api, 503)
            found = report(made)
            refused, read = submit(api), api.http.get(f"/v1/requests/{job}")
        finally:
            redis_client.config_set("maxmemory", "0")

        assert "maxmemory" in not_ready["checks"]["redis"]
        assert found["redis"].state == "failed"
        assert found["redis"].remedy == "raise maxmemory, or lower FLUX2_QUEUE_RETENTION_S"
        assert refused.status_code == 503
        assert read.status_code == 200
        ready(api, 200)
        assert submit(api).status_code == 202


def test_ready_tells_within_a_second_that_redis_is_back(start_redis, at, serve_api, wait_until):
    server = start_redis()
    with serve_api(at(server.url)) as api:
        ready(api, 200)
        port = server.port
        server.stop()
        assert "did not answer" in ready(api, 503)["checks"]["redis"]
        assert submit(api).status_code == 503
        server._requested_port = port
        server.start()
        back_at = time.monotonic()
        # Callers keep trying, as balancers do: that must not keep the API from noticing.
        wait_until(lambda: api.http.get("/ready") and time.monotonic() - back_at > AGREED_S, what="a second")
        ready(api, 200)


@pytest.mark.parametrize("login", ["", ":wrong@", "nobody:wrong@"])
def test_a_wrong_login_is_one_line(login, start_redis, at):
    server = start_redis()
    with redis.Redis(port=server.port) as client:
        client.config_set("requirepass", "secret")
    try:
        found = report(at(server.url.replace("redis://", f"redis://{login}")))
    finally:
        with redis.Redis(port=server.port, password="secret") as client:
            client.config_set("requirepass", "")

    assert failed(found) == {"redis"}
    assert "\n" not in found["redis"].detail
    assert found["redis"].detail.startswith("Redis refuses the login of FLUX2_REDIS_URL")
    assert found["redis"].remedy == "correct the user and the password in FLUX2_REDIS_URL"


def test_a_write_check_leaves_nothing(redis_client, redis_url):
    ledger = Ledger.connect(redis_url, QueueSettings(), timeout_s=2)
    before = redis_client.info("persistence").get("rdb_changes_since_last_save")

    ledger.check_writable()

    assert redis_client.keys() == []
    assert redis_client.info("persistence").get("rdb_changes_since_last_save") == before
    redis_client.config_set("maxmemory", "1")
    try:
        with pytest.raises(LedgerRefused):
            ledger.check_writable()
    finally:
        redis_client.config_set("maxmemory", "0")
