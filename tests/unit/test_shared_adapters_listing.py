"""Lists of adapter files: links, loops and bounded pages."""

import os

import pytest

from shared.adapters.listing import list_adapter_files


@pytest.fixture
def root(tmp_path):
    """A root with one file, and a link to the trainer's folder, which holds two."""
    root, output = tmp_path / "root", tmp_path / "output"
    (output / "run").mkdir(parents=True)
    root.mkdir()
    for file in (root / "own", output / "a", output / "run" / "b"):
        file.with_suffix(".safetensors").touch()
    (root / "output").symlink_to(output)
    return root


def listed(root, **options):
    files, after, pages = [], "", 0
    while after is not None:
        page = list_adapter_files(root, after=after, **{"limit": 10_000, **options})
        files += [file.path for file in page.files]
        after, pages = page.next_after, pages + 1
        assert pages < 10_000
    return files


def test_linked_folders_are_listed_only_if_the_operator_allows_it(root):
    assert listed(root) == ["own.safetensors"]
    assert listed(root, allow_symlinks=True) == ["output/a.safetensors", "output/run/b.safetensors", "own.safetensors"]


def test_pages_of_any_length_list_the_same_files(root):
    (root / "output" / "run" / "deep").mkdir()
    (root / "output" / "run" / "deep" / "c.safetensors").touch()
    whole = listed(root, allow_symlinks=True)

    for limit, max_entries in [(1, 1), (1, 2), (2, 3), (5, 1)]:
        assert listed(root, allow_symlinks=True, limit=limit, max_entries=max_entries) == whole


def test_links_in_a_circle_to_a_parent_and_to_nothing_end(root, tmp_path):
    (root / "loop").symlink_to("loop")
    (root / "lost").symlink_to("/nowhere")
    (root / "lost.safetensors").symlink_to("/nowhere.safetensors")
    (root / "me").symlink_to(root)
    (tmp_path / "output" / "up").symlink_to(tmp_path)
    (tmp_path / "output" / "again").symlink_to(tmp_path / "output")

    found = listed(root, allow_symlinks=True)

    # Through `up` the root and the trainer's folder are below other paths, each of them once.
    assert [path for path in found if "up" not in path] == listed_without_loops()
    assert len(found) == len(set(found)) < 20


def listed_without_loops():
    return ["output/a.safetensors", "output/run/b.safetensors", "own.safetensors"]


def test_folders_that_all_link_to_each_other_are_listed_to_a_bounded_depth(tmp_path):
    names = [f"f{number}" for number in range(8)]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.safetensors").touch()
        for other in names:
            (tmp_path / name / f"to-{other}").symlink_to(tmp_path / other)

    # Every path with up to three links and without a circle: 8 + 8*7 + 8*7*6 + 8*7*6*5.
    assert len(listed(tmp_path, allow_symlinks=True)) == 8 + 56 + 336 + 1680


def test_a_page_ends_after_a_bounded_number_of_folders(tmp_path):
    for number in range(30):
        (tmp_path / f"{number:02d}").mkdir()

    first = list_adapter_files(tmp_path, limit=5, max_entries=10)

    assert (first.files, first.next_after) == ([], "09")


def test_a_root_that_is_missing_or_unreadable_lists_nothing(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o000)

    assert listed(tmp_path / "nothing") == []
    assert listed(tmp_path / "closed") == [] or os.getuid() == 0
