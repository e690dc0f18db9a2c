"""Paths of callers: only files under the root are found, and errors reveal nothing else."""

import os
from contextlib import contextmanager

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.adapters.locate import locate_adapter, naming_root
from shared.adapters.nearest import find_nearest
from shared.errors import AdapterNotFound, AdapterRefused

FUZZ = settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)


@pytest.fixture
def root(tmp_path):
    """An adapter root with two adapters, beside a secret."""
    root = tmp_path / "srv" / "adapters"
    (root / "people").mkdir(parents=True)
    (root / "people" / "ann.safetensors").write_bytes(b"ann")
    (root / "狐 100%.safetensors").write_bytes(b"fox")
    (root / "notes.txt").write_text("notes")
    (tmp_path / "srv" / "secret.safetensors").write_bytes(b"secret")
    return root


@pytest.mark.parametrize("path", ["people/ann.safetensors", "./people//ann.safetensors", "people/./ann.safetensors"])
def test_a_relative_path_is_found_under_the_root(root, path):
    assert locate_adapter(path, root=root) == root / "people/ann.safetensors"


def test_names_may_hold_spaces_percent_signs_and_any_script(root):
    assert locate_adapter("狐 100%.safetensors", root=root).read_bytes() == b"fox"


def test_an_absolute_path_inside_the_root_is_found(root):
    assert locate_adapter(f"{root}/people/ann.safetensors", root=root) == root / "people/ann.safetensors"


def test_the_root_itself_may_be_a_symlink(root, tmp_path):
    (tmp_path / "link").symlink_to(root)

    for path in ("people/ann.safetensors", f"{tmp_path}/link/people/ann.safetensors", f"{root}/people/ann.safetensors"):
        assert locate_adapter(path, root=tmp_path / "link") == root / "people/ann.safetensors"


def test_a_relative_root_starts_at_the_working_directory(root, monkeypatch):
    monkeypatch.chdir(root.parent)

    assert (
        locate_adapter("people/ann.safetensors", root=root.relative_to(root.parent)) == root / "people/ann.safetensors"
    )


def test_a_symlink_inside_the_root_can_be_located_again_by_its_own_name(root):
    (root / "blobs").mkdir()
    (root / "blobs" / "ab12").write_bytes(b"blob")  # a Hugging Face cache: only the link has the suffix
    (root / "alias.safetensors").symlink_to("blobs/ab12")

    found = locate_adapter("alias.safetensors", root=root)

    assert found.read_bytes() == b"blob"
    assert locate_adapter(str(found.relative_to(root)), root=root) == found


@pytest.mark.parametrize(
    "path", ["nobody.safetensors", "people/nobody.safetensors", "nobody", "people/ann.safetensors/x.safetensors"]
)
def test_a_missing_file_is_not_found_under_the_name_that_the_caller_wrote(root, path):
    with pytest.raises(AdapterNotFound) as missing:
        locate_adapter(path, root=root)

    assert str(missing.value).startswith(f"no adapter at {path!r} under the adapter root (FLUX2_ADAPTERS_ROOT)")
    assert str(root) not in str(missing.value)
    assert missing.value.field == "path"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("", "is empty"),
        ("../secret.safetensors", "holds '..'"),
        ("people/../../secret.safetensors", "holds '..'"),
        ("people/../people/ann.safetensors", "holds '..'"),
        ("/etc/passwd", "leads outside the adapter root"),
        ("/", "leads outside the adapter root"),
        ("//server/share/x.safetensors", "leads outside the adapter root"),
        ("people\\ann.safetensors", "holds a backslash"),
        ("..\\secret.safetensors", "holds a backslash"),
        ("\\\\server\\share\\x.safetensors", "holds a backslash"),
        ("people/ann.safetensors\0.txt", "holds a character that no file name can have"),
        ("people/ann\n.safetensors", "holds a character that no file name can have"),
        ("people/\ud800.safetensors", "holds a character that no file name can have"),
        ("%2e%2e/secret.safetensors", "is percent-encoded"),
        ("..%2fsecret.safetensors", "is percent-encoded"),
        ("%252e%252e/secret.safetensors", "is percent-encoded"),
        ("people%2Fann.safetensors", "is percent-encoded"),
        ("file:///etc/passwd", "is a file address; only files under the adapter root are served"),
        ("file:people/ann.safetensors", "is a file address"),
        ("http://169.254.169.254/x.safetensors", "is a http address"),
        ("HTTPS://example.com/x.safetensors", "is a https address"),
        ("s3://bucket/x.safetensors", "is a s3 address"),
        ("hf:someone/lora", "is a hf address"),
        ("hf://someone/lora", "is a hf address"),
        ("gopher://x/y.safetensors", "is a gopher address"),
        ("people", "is a directory"),
        (".", "is a directory"),
        ("notes.txt", "does not end in .safetensors"),
        ("x" * 5000 + ".safetensors", "has 5012 characters"),
        ("x" * 300 + ".safetensors", "cannot be read"),
    ],
)
def test_a_path_that_cannot_name_an_adapter_is_refused_with_the_reason(root, path, reason):
    with pytest.raises(AdapterRefused) as refused:
        locate_adapter(path, root=root)

    assert reason in str(refused.value)
    assert refused.value.field == "path"
    assert str(root) not in str(refused.value)


def test_a_symlink_that_leads_outside_is_refused_even_if_its_target_does_not_exist(root):
    (root / "out.safetensors").symlink_to("../secret.safetensors")
    (root / "lost.safetensors").symlink_to("/nowhere/x.safetensors")
    (root / "outside").symlink_to("..")

    for path in ("out.safetensors", "lost.safetensors", "outside/secret.safetensors"):
        with pytest.raises(AdapterRefused, match="leads outside the adapter root; only files under it are served"):
            locate_adapter(path, root=root)


def test_the_refusal_of_a_link_names_the_link_and_the_setting_and_not_its_target(root, tmp_path):
    (root / "people" / "output").symlink_to(tmp_path / "srv")

    with pytest.raises(AdapterRefused) as refused:
        locate_adapter("people/output/secret.safetensors", root=root)

    assert str(refused.value) == (
        "'people/output/secret.safetensors' leads outside the adapter root; only files under it are served, and "
        "'people/output' is a link that leaves it. Copy the file into the adapter root, or set "
        "FLUX2_ADAPTERS_ALLOW_SYMLINKS=true for the workers and the API"
    )


def test_a_link_that_leaves_the_root_is_followed_if_the_operator_allows_it(root, tmp_path):
    (root / "output").symlink_to(tmp_path / "srv")
    (root / "one.safetensors").symlink_to("../secret.safetensors")
    (tmp_path / "srv" / "again").symlink_to(tmp_path)
    (tmp_path / "link").symlink_to(root)

    for path in (
        "output/secret.safetensors",
        "one.safetensors",
        "output/again/srv/secret.safetensors",
        f"{root}/output/secret.safetensors",
        f"{tmp_path}/link/one.safetensors",
    ):
        found = locate_adapter(path, root=tmp_path / "link", allow_symlinks=True)
        assert found.read_bytes() == b"secret"
        # Located again by a worker, from the path below the root.
        assert locate_adapter(str(found.relative_to(root)), root=root, allow_symlinks=True) == found


def test_only_links_below_the_root_are_followed(root, tmp_path):
    (root / "output").symlink_to(tmp_path / "srv")

    for path in (f"{tmp_path}/srv/secret.safetensors", "output/../secret.safetensors", "/etc/passwd", "output"):
        with pytest.raises(AdapterRefused):
            locate_adapter(path, root=root, allow_symlinks=True)


def test_a_link_to_nothing_is_named(root):
    (root / "lost").symlink_to("/nowhere")

    with pytest.raises(AdapterNotFound, match="the target of the link 'lost' does not exist; correct the link"):
        locate_adapter("lost/x.safetensors", root=root, allow_symlinks=True)


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("people/anne.safetensors", "; did you mean 'people/ann.safetensors'?"),
        ("people/ann", "; did you mean 'people/ann.safetensors'?"),
        ("ann.safetensors", "; did you mean 'people/ann.safetensors'?"),
        ("People/Ann.safetensors", "; did you mean 'people/ann.safetensors'?"),
        ("peple/ann.safetensors", "; did you mean 'people/ann.safetensors'?"),
        ("nothing-like-it.safetensors", "; `flux2 adapters` and GET /v1/adapters list what is there"),
        ("ann/" * 60, "; `flux2 adapters` and GET /v1/adapters list what is there"),
    ],
)
def test_a_missing_adapter_is_answered_with_the_nearest_names(root, path, hint):
    with pytest.raises(AdapterNotFound) as missing:
        locate_adapter(path, root=root)

    assert str(missing.value).endswith(f"(FLUX2_ADAPTERS_ROOT){hint}")


def test_at_most_three_names_are_suggested_the_most_similar_ones_first(root):
    for name in ("step_1000", "step_1500", "step_2000", "step_2500", "other"):
        (root / f"{name}.safetensors").touch()
    (root / ".step_1001.safetensors").touch()

    assert find_nearest("step_1001.safetensors", base=root, follow_symlinks=False) == [
        "step_1000.safetensors",
        "step_1500.safetensors",
        "step_2000.safetensors",
    ]


def test_suggestions_look_at_a_bounded_number_of_entries_and_survive_loops(root, monkeypatch):
    looked = []
    scandir = os.scandir

    @contextmanager
    def counting(folder):
        with scandir(folder) as found:
            yield (looked.append(entry.name) or entry for entry in found)

    (root / "round").symlink_to(root)
    (root / "loop").symlink_to("loop")
    for number in range(6000):
        (root / f"note {number}.txt").touch()
    monkeypatch.setattr("shared.adapters.nearest.os.scandir", counting)

    find_nearest("people/anne.safetensors", base=root, follow_symlinks=True)

    assert 1000 < len(looked) <= 4000


def test_a_missing_root_is_named_by_its_setting(tmp_path):
    with pytest.raises(AdapterNotFound, match=r"\(FLUX2_ADAPTERS_ROOT\): the root does not exist; create it"):
        locate_adapter("a.safetensors", root=tmp_path / "nothing")


def test_a_command_on_the_host_names_the_root(root):
    with pytest.raises(AdapterNotFound) as missing, naming_root(root):
        locate_adapter("ann.safetensors", root=root)

    assert str(missing.value).endswith(f"; the adapter root is {root}")
    assert missing.value.field == "path"


def test_a_folder_whose_name_only_begins_like_the_root_is_outside(root):
    (root.parent / "adapters-private").mkdir()
    (root.parent / "adapters-private" / "x.safetensors").write_bytes(b"x")

    with pytest.raises(AdapterRefused, match="leads outside"):
        locate_adapter(f"{root}-private/x.safetensors", root=root)


def test_a_symlink_loop_and_a_pipe_are_refused(root):
    (root / "loop.safetensors").symlink_to("loop.safetensors")
    os.mkfifo(root / "pipe.safetensors")

    with pytest.raises(AdapterRefused, match="cannot be read"):
        locate_adapter("loop.safetensors", root=root)
    with pytest.raises(AdapterRefused, match="not a regular file"):
        locate_adapter("pipe.safetensors", root=root)


PIECES = st.sampled_from(
    [
        "..", ".", "", "/", "//", "\\", "people", "ann.safetensors", "secret.safetensors", "etc", "passwd", "~", "\0",
        "%2e%2e", "%2f", "file://", "http://", "C:", "．．", "∕", "⁄", "／", "․․", "..;", " ", "\u202e",
    ]
)  # fmt: skip


@FUZZ
@given(st.lists(PIECES, max_size=8).map("".join) | st.lists(PIECES, max_size=6).map("/".join) | st.text(max_size=30))
def test_any_path_leads_to_an_adapter_under_the_root_or_is_refused(root, path):
    try:
        found = locate_adapter(path, root=root)
    except (AdapterNotFound, AdapterRefused) as error:
        told = str(error)
    else:
        assert found == root / "people/ann.safetensors"
        told = ""

    # Neither where the root is, nor anything of what lies beside it, is told.
    assert str(root) not in told
