"""An item gets its adapters as files of this host, which stay for as long as it needs them."""

import hashlib

import pytest

from shared.errors import AdapterRefused, SourceUnavailable
from shared.job import AdapterRef
from shared.settings import AdaptersSettings
from shared.sources.cache import FileCache
from shared.sources.inventory import CacheInventory
from shared.sources.remote_file import Pin
from worker.consumer.adapter_files import AdapterFiles, open_adapter_files

SIZE = 1000


class MemoryFile:
    sha256, size_bytes = None, SIZE

    def __init__(self, name, pin):
        self.name, self.pin = name, Pin.parse(pin)

    def stream(self, start):
        yield content(self.name)[start:]


def content(name):
    return (hashlib.sha256(name.encode()).digest() * 32)[:SIZE]


@pytest.fixture
def opened():
    """The sources that were opened, in order."""
    return []


@pytest.fixture
def make_files(tmp_path, opened):
    def make(max_bytes=10 * SIZE):
        def open_file(source, pin):
            opened.append(source)
            return MemoryFile(source, pin)

        cache = FileCache(tmp_path / "cache", max_bytes=max_bytes, open_file=open_file, retry_budget_s=0.0)
        return AdapterFiles(AdaptersSettings(root=tmp_path), cache)

    return make


@pytest.fixture
def in_use(tmp_path):
    """Return the sources of the files that are in use."""

    def sources():
        lines = CacheInventory(tmp_path / "cache", max_bytes=SIZE).lines()
        return [line.sources[0] for line in lines if line.in_use]

    return sources


def remote(name, *, sha256=""):
    return AdapterRef(path=f"hf://o/r/{name}@main", sha256=sha256, size_bytes=SIZE, multiplier=0.5, pin="commit:1")


def nothing():
    pass


def test_a_local_file_is_used_where_it_is_and_gives_no_timing(make_files, item, tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"x")
    spec = item(adapters=(AdapterRef(path="a.safetensors", sha256="1", size_bytes=1, multiplier=1.0),))

    with make_files().open(spec, on_fetch=nothing) as files:
        assert files.paths == (tmp_path / "a.safetensors",)
        assert files.spec == spec
        assert files.timings == {}

    assert not (tmp_path / "cache").exists()


def test_a_remote_file_is_downloaded_and_the_item_gets_its_real_digest(make_files, item, opened, in_use):
    ref = remote("a")
    files = make_files()

    with files.open(item(adapters=(ref,)), on_fetch=nothing) as found:
        assert found.paths[0].read_bytes() == content(ref.path)
        (resolved,) = found.spec.adapters
        assert resolved.model_dump() == {
            **ref.model_dump(),
            "sha256": hashlib.sha256(content(ref.path)).hexdigest(),
        }
        # The ledger and the other workers know the item's adapters by this key.
        assert found.spec.adapter_key == item(adapters=(ref,)).adapter_key
        assert found.timings["fetch"] > 0
        assert in_use() == [ref.path]

    assert in_use() == []
    with files.open(item(adapters=(ref,)), on_fetch=nothing):
        assert opened == [ref.path]


def test_prefetched_files_stay_until_their_item_has_rendered(make_files, item, opened, in_use):
    files = make_files()
    coming = item(adapters=(remote("next"),))
    with files.open(item(), on_fetch=nothing):
        prefetched = files.prefetch(coming, on_fetch=nothing)
    assert in_use() == [remote("next").path]

    with files.open(coming, on_fetch=nothing) as found:
        assert found.paths == prefetched.paths
        assert found.spec == prefetched.spec
        assert in_use() == [remote("next").path]

    assert in_use() == []
    assert opened == [remote("next").path]


def test_the_files_of_a_wrong_guess_take_no_room_that_the_next_item_needs(make_files, item, opened):
    files = make_files(max_bytes=SIZE)
    files.prefetch(item(adapters=(remote("guess"),)), on_fetch=nothing)

    with files.open(item(adapters=(remote("other"),)), on_fetch=nothing) as found:
        assert found.paths[0].read_bytes() == content(remote("other").path)


def test_a_guess_that_arrives_after_another_item_began_is_let_go(make_files, item, in_use):
    files = make_files()

    def begin_another_item():
        with files.open(item(), on_fetch=nothing):
            pass

    assert files.prefetch(item(adapters=(remote("late"),)), on_fetch=begin_another_item) is None
    assert in_use() == []


def test_what_the_callback_raises_ends_the_fetch(make_files, item):
    def refuse():
        raise SourceUnavailable("stop")

    with (
        pytest.raises(SourceUnavailable, match="stop"),
        make_files().open(item(adapters=(remote("a"),)), on_fetch=refuse),
    ):
        pass


def test_a_worker_with_local_files_only_refuses_links(item, settings):
    files = open_adapter_files(settings(sources={"local_only": True}))

    with (
        pytest.raises(AdapterRefused, match="FLUX2_SOURCES_LOCAL_ONLY allows this worker no other files"),
        files.open(item(adapters=(remote("a"),)), on_fetch=nothing),
    ):
        pass
