"""The folders of commands: refused before any work, and gone if nothing was written."""

import pytest

from shared.errors import OutputRefused
from shared.outputs import output_folder


def fail_in(folder):
    with output_folder(folder):
        assert folder.is_dir()
        raise ZeroDivisionError


def test_new_folders_that_stay_empty_are_removed_also_after_a_failure(tmp_path):
    with output_folder(tmp_path / "a" / "b"):
        pass
    with pytest.raises(ZeroDivisionError):
        fail_in(tmp_path / "a" / "b")

    assert list(tmp_path.iterdir()) == []


def test_folders_that_are_in_use_or_were_there_stay(tmp_path):
    (tmp_path / "mine").mkdir()

    with output_folder(tmp_path / "mine"):
        pass
    with output_folder(tmp_path / "new" / "out"):
        (tmp_path / "new" / "out" / "image.png").touch()
    with output_folder(tmp_path / "kept" / "out"):
        (tmp_path / "kept" / "notes").touch()

    assert sorted(path.name for path in tmp_path.rglob("*")) == ["image.png", "kept", "mine", "new", "notes", "out"]


def test_a_folder_that_cannot_be_made_is_refused_before_the_work(tmp_path):
    (tmp_path / "file").touch()

    with pytest.raises(OutputRefused, match="choose another --output"), output_folder(tmp_path / "file" / "out"):
        pytest.fail("the work began")
