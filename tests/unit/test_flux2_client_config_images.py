"""The reference images of a training config are found on this host."""

import pytest
from PIL import Image

from flux2_client.config_images import find_images
from shared.errors import ConfigImagesNotFound


@pytest.fixture
def draw(tmp_path):
    def draw(name, color):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), color).save(path)
        return path

    return draw


@pytest.fixture
def find(tmp_path, monkeypatch):
    """Return the paths found for names; the config is in `toolkit/config`, and the current folder is `here`."""
    (tmp_path / "here").mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path / "here")

    def find(*names, folders=()):
        config = tmp_path / "toolkit" / "config" / "edit.yaml"
        return [
            image.path for image in find_images(names, config=config, folders=[tmp_path / name for name in folders])
        ]

    return find


def test_an_absolute_path_is_read_as_written(draw, find):
    path = draw("data/a.png", "red")

    assert find(str(path)) == [path]


@pytest.mark.parametrize("place", ["here", "toolkit/config", "toolkit"])
def test_a_relative_path_begins_at_the_current_folder_or_at_the_configs_or_above(draw, find, place):
    path = draw(f"{place}/images/a.png", "red")

    assert find("images/a.png") == [path]


def test_different_files_at_a_relative_path_are_refused(draw, find):
    draw("here/a.png", "red")
    draw("toolkit/a.png", "blue")

    with pytest.raises(ConfigImagesNotFound, match=r"a\.png: .*/here/a\.png and .*/toolkit/a\.png differ"):
        find("a.png")


def test_equal_files_at_a_relative_path_are_one(draw, find):
    here = draw("here/a.png", "red")
    draw("toolkit/a.png", "red")

    assert find("a.png") == [here]


@pytest.mark.parametrize(
    "name", ["/workspace/sets/edit/in/a.png", "sets/edit/in/a.png", "C:\\sets\\edit\\in\\a.png", "../edit/in/a.png"]
)
def test_a_file_is_found_in_a_folder_by_the_longest_end_of_its_path(draw, find, name):
    path = draw("copied/in/a.png", "red")
    draw("copied/a.png", "blue")

    assert find(name, folders=["copied"]) == [path]


def test_a_given_folder_comes_before_the_configs_path(draw, find):
    written, copied = draw("data/a.png", "red"), draw("copied/a.png", "blue")
    other = draw("data/b.png", "green")

    assert find(str(written), str(other), folders=["copied"]) == [copied, other]


def test_each_of_several_folders_is_searched(draw, find):
    first, second = draw("one/a.png", "red"), draw("two/b.png", "blue")

    assert find("/sets/one/a.png", "/sets/two/b.png", folders=["one", "two"]) == [first, second]


def test_different_files_in_several_folders_are_refused(draw, find):
    draw("one/a.png", "red")
    draw("two/a.png", "blue")

    with pytest.raises(ConfigImagesNotFound, match=r"one/a\.png and .*two/a\.png differ; with --images, give the one"):
        find("/sets/a.png", folders=["one", "two"])


def test_one_file_for_two_different_names_is_refused(draw, find):
    draw("copied/a.png", "red")

    with pytest.raises(ConfigImagesNotFound, match=r"/two/a\.png: .*copied/a\.png was found for /one/a\.png too"):
        find("/one/a.png", "/two/a.png", folders=["copied"])


def test_one_file_for_two_spellings_of_its_name_is_found(draw, find):
    path = draw("copied/one/a.png", "red")

    assert find("/sets/one/a.png", "one/a.png", folders=["copied"]) == [path, path]


def test_all_missing_files_are_named_with_the_option_that_finds_them(draw, find):
    path = draw("data/a.png", "red")

    with pytest.raises(ConfigImagesNotFound) as refused:
        find(str(path), "/workspace/b.png", "/workspace/c.png")

    assert str(refused.value).splitlines() == [
        "2 of the config's 3 reference images cannot be used",
        "not on this host; give their folder with --images FOLDER:",
        "  /workspace/b.png",
        "  /workspace/c.png",
    ]


def test_many_missing_files_are_counted(find):
    with pytest.raises(ConfigImagesNotFound) as refused:
        find(*(f"/workspace/{number}.png" for number in range(8)))

    assert str(refused.value).splitlines()[-2:] == ["  /workspace/4.png", "  and 3 more"]


@pytest.mark.parametrize("name", ["x" * 300 + ".png", "a\0.png"])
def test_a_name_that_no_file_of_this_host_can_have_is_missing(find, name):
    with pytest.raises(ConfigImagesNotFound, match="not on this host; give their folder with --images FOLDER"):
        find(name, folders=["."])


def test_a_file_that_is_no_image_never_leaves_this_host(tmp_path, find):
    (tmp_path / "passwords.txt").write_text("secret")

    with pytest.raises(ConfigImagesNotFound, match=r"passwords\.txt: the file is no image") as refused:
        find(str(tmp_path / "passwords.txt"))
    assert "--images" not in str(refused.value)


def test_a_folder_is_no_image(tmp_path, find):
    with pytest.raises(ConfigImagesNotFound, match="not on this host; give their folder with --images FOLDER"):
        find(str(tmp_path))
