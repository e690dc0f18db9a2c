"""The file cache of a host, with real processes, a real HTTP server that counts, and a real disk."""

import errno
import fcntl
import hashlib
import json
import os
import random
import runpy
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from shared.errors import AdapterRefused, CacheUnavailable, ItemCanceled, SourceChanged, SourceUnavailable
from shared.sources import cache_folder, cached_file
from shared.sources.cache import FileCache
from shared.sources.inventory import CacheInventory
from shared.sources.locked_file import remove_unused
from shared.sources.remote_file import Pin

SCRIPT = Path(__file__).with_name("http_file.py")
HTTP = runpy.run_path(str(SCRIPT))
CHUNK = HTTP["CHUNK"]
SIZE = 16 * CHUNK
LIMIT = 100 * SIZE


def random_bytes(seed, size=SIZE):
    return random.Random(seed).randbytes(size)


def digest(data):
    return hashlib.sha256(data).hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer(200, self.server.files[self.path], with_body=False)

    def do_GET(self):
        data, start = self.server.files[self.path], int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        if self.headers["If-Match"] != self.server.etag(self.path):
            self.answer(412, b"")
            return
        with self.server.lock:
            self.server.starts.append(start)
        self.answer(206, data[start:], start=start)

    def answer(self, status, body, *, with_body=True, start=0):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.send_header("ETag", self.server.etag(self.path))
        if self.server.states_digest:
            self.send_header("X-Sha256", digest(self.server.promised.get(self.path, self.server.files[self.path])))
        self.end_headers()
        self.close_connection = True
        if with_body:
            self.send_body(body, start)

    def send_body(self, body, start):
        for at in range(0, len(body), CHUNK):
            if start + at >= self.server.pause_at:
                self.server.paused.set()
                self.server.resume.wait(20)
            if self.server.cut_at and start + at >= self.server.cut_at[0]:
                self.server.cut_at.pop(0)
                return
            try:
                self.wfile.write(body[at : at + CHUNK])
            except OSError:
                return
            with self.server.lock:
                self.server.sent += len(body[at : at + CHUNK])

    def log_message(self, *_):
        pass


class FileServer(ThreadingHTTPServer):
    """Serves bytes with ETags; counts the downloads and the bytes, and breaks them off or pauses them."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.files, self.promised, self.etags = {}, {}, {}
        self.starts, self.sent = [], 0
        self.pause_at, self.cut_at = float("inf"), []
        self.paused, self.resume, self.closing = threading.Event(), threading.Event(), threading.Event()
        self.states_digest = True

    def etag(self, path):
        return self.etags.get(path, f'"{digest(self.files[path])[:8]}"')

    def add(self, name, data, *, promised=None):
        """Serve bytes; return the arguments of a fetch that was accepted for these, or for the promised ones."""
        path = f"/{name}"
        self.files[path] = data
        if promised is not None:
            self.promised[path] = promised
        accepted = data if promised is None else promised
        url = f"http://127.0.0.1:{self.server_port}{path}"
        sha256 = digest(accepted) if self.states_digest else None
        return {"source": url, "pin": f"etag:{self.etag(path)}", "size_bytes": len(accepted), "sha256": sha256}


@pytest.fixture
def server(serve_http):
    server = serve_http(FileServer())
    yield server
    server.resume.set()


@pytest.fixture
def make_cache(tmp_path):
    def make(max_bytes=LIMIT, retry_budget_s=5.0):
        return FileCache(
            tmp_path / "cache", max_bytes=max_bytes, open_file=HTTP["open_http"], retry_budget_s=retry_budget_s
        )

    return make


@pytest.fixture
def start(tmp_path):
    """Start a process that fetches a file and keeps it in use until its standard input is closed."""
    with ExitStack() as started:

        def run(wanted, *, max_bytes=LIMIT, retry_budget_s=5.0):
            limits = {"max_bytes": max_bytes, "retry_budget_s": retry_budget_s}
            text = json.dumps({"folder": str(tmp_path / "cache"), **limits, **wanted})
            command = [sys.executable, str(SCRIPT), text]
            root = str(Path(__file__).parents[2])
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": root},
            )
            started.enter_context(process)
            started.callback(process.kill)
            assert process.stdout.readline() == "started\n"
            return process

        yield run


def outcome(process):
    """What a process has to say of its fetch; it then still uses the file."""
    return json.loads(process.stdout.readline())


def partial_size(folder):
    return sum(entry.size_bytes for entry in cache_folder.CacheFolder(folder).entries() if entry.kind == "partial")


def clear(cache, **options):
    return CacheInventory(cache.folder.root, max_bytes=LIMIT).clear(**options)


def test_processes_and_threads_that_ask_for_one_file_download_it_once(server, start, make_cache):
    data = random_bytes(1)
    wanted = server.add("a", data)
    server.pause_at = SIZE // 2
    processes = [start(wanted), start(wanted)]
    server.paused.wait(20)
    received = []

    def read():
        with make_cache().fetch(**wanted) as file:
            received.append(file.path.read_bytes())

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    server.resume.set()

    outcomes = [outcome(process) for process in processes]
    for thread in threads:
        thread.join()

    assert [Path(found["path"]).read_bytes() for found in outcomes] == [data, data]
    assert received == [data] * 3
    assert sorted(found["fetched"] for found in outcomes) == [0, SIZE]
    assert server.starts == [0]
    assert server.sent == SIZE


@pytest.fixture
def kill_at_half(server, start, tmp_path, wait_until):
    """Start a process that fetches a file, and kill it when half of the file is on the disk."""

    def kill(wanted):
        server.pause_at = SIZE // 2
        victim = start(wanted)
        wait_until(lambda: partial_size(tmp_path / "cache") == SIZE // 2)
        victim.kill()
        victim.wait()
        server.pause_at = float("inf")
        server.resume.set()

    return kill


@pytest.mark.parametrize("states_digest", [True, False])
def test_a_download_whose_process_was_killed_is_continued_without_fetching_anything_twice(
    states_digest, server, start, kill_at_half
):
    server.states_digest = states_digest
    data = random_bytes(2)
    wanted = server.add("a", data)
    kill_at_half(wanted)

    found = outcome(start(wanted))

    assert Path(found["path"]).read_bytes() == data
    assert found["fetched"] == SIZE // 2
    assert server.starts == [0, SIZE // 2]


def test_a_connection_that_breaks_is_continued_where_it_broke(server, make_cache):
    data = random_bytes(3)
    wanted = server.add("a", data)
    server.cut_at = [3 * CHUNK, 9 * CHUNK]

    with make_cache().fetch(**wanted) as file:
        assert file.path.read_bytes() == data

    assert server.starts == [0, 3 * CHUNK, 9 * CHUNK]
    assert server.sent == SIZE


def test_a_file_in_the_cache_needs_no_source_even_after_a_restart(server, make_cache):
    server.states_digest = False
    wanted = server.add("a", random_bytes(4))
    make_cache().fetch(**wanted).close()
    server.files.clear()

    with make_cache().fetch(**wanted) as file:
        assert file.sha256 == digest(random_bytes(4))
        assert file.fetched_bytes == 0


def test_two_sources_with_the_same_bytes_share_one_file(server, make_cache):
    data = random_bytes(5)
    with make_cache().fetch(**server.add("a", data)) as first, make_cache().fetch(**server.add("b", data)) as second:
        assert first.path == second.path
    server.states_digest = False
    with make_cache().fetch(**server.add("c", data)) as third:
        assert third.path == first.path

    assert server.starts == [0, 0]
    assert [entry.kind for entry in make_cache().folder.entries()] == ["file"]


@pytest.mark.parametrize(
    # In several attempts, the time may be over within one or between two of them.
    ("pieces", "message"),
    [(10, "broke off|is sent too slowly"), (10**6, "is sent too slowly: [0-9]+ of 1000000 bytes")],
)
def test_a_host_that_sends_a_byte_now_and_then_holds_no_worker_longer_than_a_download_may_take(
    pieces, message, tmp_path
):
    starts = []

    class Dripping:
        name, size_bytes, sha256, pin = "https://example.com/a", 10**6, None, Pin("etag", '"v1"')

        def stream(self, start):
            starts.append(start)
            for _ in range(pieces):
                time.sleep(0.02)  # a slow host
                yield b"x"
            raise SourceUnavailable("broke off")

    cache = FileCache(tmp_path, max_bytes=10**9, open_file=lambda source, pin: Dripping(), download_s=1.0)
    began = time.monotonic()

    with pytest.raises(SourceUnavailable, match=message):
        cache.fetch(Dripping.name, pin=str(Dripping.pin), size_bytes=10**6)

    assert time.monotonic() - began < 10
    assert starts == sorted(set(starts))  # continued, not begun again


def test_the_least_recently_used_files_make_room_and_one_in_use_stays(server, start, make_cache, tmp_path):
    files = {name: server.add(name, random_bytes(name)) for name in "abcd"}
    cache = make_cache(max_bytes=3 * SIZE)
    user = start(files["a"], max_bytes=3 * SIZE)
    in_use = outcome(user)["path"]
    cache.fetch(**files["b"]).close()
    cache.fetch(**files["c"]).close()
    cache.fetch(**files["b"]).close()  # so that c is the least recently used one that nobody uses

    cache.fetch(**files["d"]).close()

    names = [entry.name for entry in cache.folder.entries()]
    assert names == [files[name]["sha256"] for name in "abd"]
    assert Path(in_use).read_bytes() == random_bytes("a")
    assert sum(entry.size_bytes for entry in cache.folder.entries()) <= 3 * SIZE


def test_a_file_is_evicted_once_its_user_was_killed(server, start, make_cache):
    files = {name: server.add(name, random_bytes(name)) for name in "ab"}
    user = start(files["a"], max_bytes=SIZE)
    outcome(user)
    with pytest.raises(CacheUnavailable, match="in use or on their way; raise FLUX2_SOURCES_CACHE_MAX_BYTES"):
        make_cache(max_bytes=SIZE, retry_budget_s=0.2).fetch(**files["b"])
    user.kill()
    user.wait()

    make_cache(max_bytes=SIZE).fetch(**files["b"]).close()

    assert [entry.name for entry in make_cache().folder.entries()] == [files["b"]["sha256"]]


def test_downloads_at_the_same_time_stay_within_the_limit_together(server, start, make_cache):
    server.pause_at = CHUNK
    first = start(server.add("a", random_bytes("a")), max_bytes=2 * SIZE - 1)
    server.paused.wait(20)

    # The first has received one chunk, but the whole of it counts.
    with pytest.raises(CacheUnavailable, match="no room in the cache"):
        make_cache(max_bytes=2 * SIZE - 1, retry_budget_s=0.2).fetch(**server.add("b", random_bytes("b")))

    server.resume.set()
    assert outcome(first)["fetched"] == SIZE


def test_a_file_larger_than_the_cache_is_refused_with_the_setting(server, make_cache):
    with pytest.raises(AdapterRefused, match=r"or ask the operator to raise FLUX2_SOURCES_CACHE_MAX_BYTES"):
        make_cache(max_bytes=SIZE - 1).fetch(**server.add("a", random_bytes(6)))

    assert server.starts == []


def test_clearing_removes_what_nobody_uses_even_during_a_download(server, start, make_cache, tmp_path, wait_until):
    cache = make_cache()
    cache.fetch(**server.add("old", random_bytes(7))).close()
    user = start(server.add("used", random_bytes(8)))
    used = outcome(user)["path"]
    server.pause_at = SIZE // 2
    arriving = start(server.add("arriving", random_bytes(9)))
    wait_until(lambda: partial_size(tmp_path / "cache") == SIZE // 2)

    cleared = clear(cache)

    assert (cleared.removed, cleared.removed_bytes, cleared.in_use) == (1, SIZE, 2)
    server.resume.set()
    assert Path(outcome(arriving)["path"]).read_bytes() == random_bytes(9)
    assert Path(used).read_bytes() == random_bytes(8)
    assert clear(cache, older_than_s=3600).removed == 0


def test_clearing_while_processes_fetch_gives_every_process_the_right_bytes(server, start, make_cache):
    wanted = {server.add(name, random_bytes(name))["source"]: server.add(name, random_bytes(name)) for name in "abc"}
    stop = threading.Event()

    def clear_often():
        while not stop.is_set():
            clear(make_cache())

    thread = threading.Thread(target=clear_often)
    thread.start()
    wrong = []
    for _ in range(4):
        for arguments in wanted.values():
            with make_cache().fetch(**arguments) as file:
                if digest(file.path.read_bytes()) != arguments["sha256"]:
                    wrong.append(arguments)
    stop.set()
    thread.join()

    assert wrong == []


def test_a_source_that_changed_gives_no_other_bytes(server, make_cache, kill_at_half):
    wanted = server.add("a", random_bytes(10))
    kill_at_half(wanted)
    server.files["/a"] = random_bytes(11)

    with pytest.raises(SourceChanged, match="has changed"):
        make_cache().fetch(**wanted)

    assert all(entry.kind == "partial" for entry in make_cache().folder.entries())


def test_bytes_that_arrived_under_one_pin_are_not_continued_under_another(server, make_cache):
    server.states_digest = False
    old = server.add("a", random_bytes(12))
    server.cut_at = [4 * CHUNK, 4 * CHUNK]
    with pytest.raises(SourceUnavailable, match=f"ended after {4 * CHUNK} of {SIZE} bytes|IncompleteRead"):
        make_cache(retry_budget_s=0.0).fetch(**old)
    server.cut_at = []

    with make_cache().fetch(**server.add("a", random_bytes(13))) as file:
        assert file.path.read_bytes() == random_bytes(13)

    assert server.starts[-1] == 0


@pytest.mark.parametrize("lie", ["short", "long", "other bytes"])
def test_a_source_that_sends_something_else_is_refused(lie, server, make_cache):
    promised = random_bytes(14)
    sent = {"short": promised[:-1], "long": promised + b"x", "other bytes": random_bytes(15)}[lie]
    wanted = server.add("a", promised)
    file = HTTP["open_http"](wanted["source"], wanted["pin"])
    cache = make_cache(retry_budget_s=0.2)
    cache._open_file = lambda source, pin: Liar(file, sent)
    expected = {
        "short": (SourceUnavailable, f"ended after {SIZE - 1} of {SIZE} bytes; try again later"),
        "long": (SourceChanged, f"sends more than the {SIZE} bytes that it stated"),
        "other bytes": (SourceChanged, "was accepted; submit again to use the present file"),
    }[lie]

    with pytest.raises(expected[0], match=expected[1]):
        cache.fetch(**wanted)

    assert [entry.kind for entry in cache.folder.entries() if entry.kind == "file"] == []


class Liar:
    """States the facts of one file, and sends the bytes of another."""

    def __init__(self, file, sent):
        self.name, self.size_bytes, self.sha256, self.pin = file.name, file.size_bytes, file.sha256, file.pin
        self._sent = sent

    def stream(self, start):
        yield from (self._sent[at : at + CHUNK] for at in range(start, len(self._sent), CHUNK))


def test_the_beginning_that_another_process_spoilt_is_fetched_again(server, make_cache, tmp_path, kill_at_half):
    wanted = server.add("a", random_bytes(16))
    kill_at_half(wanted)
    (partial,) = (tmp_path / "cache/partial").iterdir()
    partial.write_bytes(bytes(SIZE // 2))

    with make_cache().fetch(**wanted) as file:
        assert file.path.read_bytes() == random_bytes(16)

    assert server.starts == [0, SIZE // 2, 0]


@pytest.mark.parametrize("damage", ["one byte", "a shorter file"])
def test_a_damaged_file_is_detected_and_fetched_again(damage, server, make_cache):
    data = random_bytes(17)
    wanted = server.add("a", data)
    cache = make_cache()
    with cache.fetch(**wanted) as file:
        path = file.path
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]) if damage == "one byte" else data[:-1])

    with cache.fetch(**wanted) as file:
        assert file.path.read_bytes() == data

    assert server.starts == [0, 0]


def test_a_cancel_ends_a_download_and_keeps_what_arrived(server, make_cache, tmp_path):
    wanted = server.add("a", random_bytes(18))

    def cancel(present, size):
        if present >= size // 2:
            raise ItemCanceled("canceled by the caller")

    with pytest.raises(ItemCanceled):
        make_cache().fetch(**wanted, on_progress=cancel)

    assert partial_size(tmp_path / "cache") == SIZE // 2
    make_cache().fetch(**wanted).close()
    assert server.starts == [0, SIZE // 2]


def test_a_caller_that_waits_for_another_process_reports_its_progress_and_can_be_canceled(
    server, start, make_cache, tmp_path, wait_until
):
    wanted = server.add("a", random_bytes(19))
    server.pause_at = SIZE // 2
    start(wanted)
    wait_until(lambda: partial_size(tmp_path / "cache") == SIZE // 2)
    reports = []

    def cancel_after_three(present, size):
        reports.append((present, size))
        if len(reports) == 3:
            raise ItemCanceled("canceled by the caller")

    with pytest.raises(ItemCanceled):
        make_cache().fetch(**wanted, on_progress=cancel_after_three)

    assert reports == [(SIZE // 2, SIZE)] * 3


def test_a_caller_sees_the_progress_of_a_download_of_the_same_bytes_from_another_source(
    server, start, make_cache, tmp_path, wait_until
):
    first, second = (server.add(name, random_bytes(23)) for name in "ab")
    server.pause_at = SIZE // 2
    start(first)
    wait_until(lambda: partial_size(tmp_path / "cache") == SIZE // 2)

    def cancel(present, size):
        raise ItemCanceled(f"{present} of {size}")

    with pytest.raises(ItemCanceled, match=f"{SIZE // 2} of {SIZE}"):
        make_cache().fetch(**second, on_progress=cancel)


def test_a_process_that_is_killed_before_its_file_becomes_visible_costs_no_second_download(server, make_cache):
    server.states_digest = False
    wanted = server.add("a", random_bytes(24))
    cache = make_cache()

    def die(*_, **__):
        raise KeyboardInterrupt

    cache._files.publish = die
    with pytest.raises(KeyboardInterrupt):
        cache.fetch(**wanted)

    with make_cache().fetch(**wanted) as file:
        assert file.path.read_bytes() == random_bytes(24)

    assert server.starts == [0]


def test_a_file_that_is_removed_before_its_user_has_the_lock_is_fetched_again(
    server, make_cache, monkeypatch, tmp_path
):
    wanted = server.add("a", random_bytes(1))
    blob, removed = tmp_path / "cache" / "blobs" / wanted["sha256"], []

    def flock(file, operation):
        # What flock(2) allows: the old lock ends before the new one begins.
        fcntl.flock(file, fcntl.LOCK_UN)
        if not removed:
            removed.append(remove_unused(blob))
        fcntl.flock(file, operation)

    monkeypatch.setattr(cached_file, "fcntl", SimpleNamespace(flock=flock, LOCK_SH=fcntl.LOCK_SH))

    with make_cache().fetch(**wanted) as file:
        assert file.path.read_bytes() == random_bytes(1)

    assert removed == [True]
    assert server.starts == [0, 0]


def test_files_stay_if_removing_them_would_not_make_enough_room(server, start, make_cache):
    kept, used = (server.add(name, random_bytes(name)) for name in "ab")
    large = server.add("c", random_bytes("c", size=2 * SIZE))
    make_cache().fetch(**kept).close()
    outcome(start(used, max_bytes=2 * SIZE))

    with pytest.raises(CacheUnavailable, match=f"by {2 * SIZE} or more"):
        make_cache(max_bytes=2 * SIZE, retry_budget_s=0.2).fetch(**large)

    assert {entry.name for entry in make_cache().folder.entries()} == {kept["sha256"], used["sha256"]}


@pytest.mark.parametrize("sha256", ["../../etc/passwd", "", "A" * 64, "0" * 63])
def test_a_text_that_is_no_digest_names_no_file(sha256, server, make_cache, tmp_path):
    with pytest.raises(AdapterRefused, match="is not a sha256; write 64 hexadecimal digits"):
        make_cache().fetch(**{**server.add("a", b"x"), "sha256": sha256})

    assert not (tmp_path / "cache").exists()


def test_a_full_disk_is_named_and_leaves_nothing_behind(server, make_cache, monkeypatch, tmp_path):
    cache = make_cache()
    wanted = server.add("a", random_bytes(20))

    class FullDisk:
        """A file on a disk that has room for two chunks."""

        def __init__(self, file):
            self._file, self._left = file, 2 * CHUNK

        def __getattr__(self, name):
            return getattr(self._file, name)

        def write(self, data):
            if self._left < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._left -= len(data)
            return self._file.write(data)

    real = cache._open_partial

    def open_partial(wanted):
        locked = real(wanted)
        object.__setattr__(locked, "file", FullDisk(locked.file))
        return locked

    monkeypatch.setattr(cache, "_open_partial", open_partial)

    with pytest.raises(CacheUnavailable, match="is full; free space") as caught:
        cache.fetch(**wanted)

    assert caught.value.retryable
    assert cache.folder.entries() == []


def test_the_folder_is_private_and_a_planted_link_is_not_followed(server, make_cache, tmp_path):
    wanted = server.add("a", random_bytes(21))
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    cache = make_cache()
    cache.folder.prepare()
    (cache.folder.blobs / wanted["sha256"]).symlink_to(victim)
    modes = {part.name: oct(part.stat().st_mode & 0o777) for part in (cache.folder.root, *cache.folder.root.iterdir())}

    with pytest.raises(CacheUnavailable, match="FLUX2_SOURCES_CACHE_DIR"):
        cache.fetch(**wanted)

    assert set(modes.values()) == {"0o700"}
    assert victim.read_bytes() == b"precious"


def test_a_folder_of_another_user_is_named_by_the_commands(tmp_path, monkeypatch):
    inventory = CacheInventory(tmp_path, max_bytes=1)
    inventory.folder.prepare()

    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_dir", refuse)

    for command in (inventory.lines, inventory.clear):
        with pytest.raises(
            CacheUnavailable, match="Permission denied; choose a folder that this user can write, or run"
        ):
            command()


def test_a_folder_that_others_can_change_is_refused(make_cache, server, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)

    with pytest.raises(CacheUnavailable, match="name a folder in it that does not exist yet"):
        make_cache().fetch(**server.add("a", b"x"))

    (tmp_path / "cache").chmod(0o755)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "cache/blobs").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CacheUnavailable, match="blobs is a link, no folder, or another user's; remove it"):
        make_cache().fetch(**server.add("a", b"x"))


def test_old_beginnings_and_the_locks_of_killed_processes_are_removed(server, make_cache, tmp_path):
    cache = make_cache()
    cache.folder.prepare()
    old, fresh = cache.folder.partials / "old-a", cache.folder.partials / "fresh-a"
    for place in (old, fresh, cache.folder.locks / "left"):
        place.write_bytes(b"x")
    os.utime(old, (time.time() - 2 * 86_400,) * 2)

    cache.fetch(**server.add("a", random_bytes(22))).close()

    assert [place.name for place in cache.folder.partials.iterdir()] == ["fresh-a"]
    assert [place.name for place in cache.folder.locks.iterdir()] == ["room"]
