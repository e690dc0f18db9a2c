"""An edit as a person makes it: from a picture on this disk to a saved picture, over every process of the service."""

import json
import subprocess
import sys

from PIL import Image


def test_a_picture_of_this_disk_is_edited_with_one_command(stack, client, tmp_path):
    red, blue = tmp_path / "red.png", tmp_path / "blue.jpg"
    Image.new("RGB", (101, 87), (200, 30, 40)).save(red)
    Image.new("RGB", (96, 64), (20, 40, 220)).save(blue)

    def submit(*options, name):
        command = [sys.executable, "-m", "shared.cli", "submit", "-p", "a robot", "--size", "64", "--steps", "2"]
        arguments = ["--output", str(tmp_path / name), "--json", "--url", stack.url]
        done = subprocess.run([*command, *options, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    def picture(events):
        [file] = [event["file"] for event in events if event["event"] == "image"]
        return Image.open(file)

    plain = submit(name="plain")
    edited = submit("--ctrl-img", str(red), "--ctrl-img-3", str(blue), name="edited")
    uploads = [event["path"] for event in edited if event["event"] == "uploaded"]
    [used] = [event["references"] for event in edited if event["event"] == "image"]
    again = submit(
        "--ctrl-img", f"upload:{used[0]['sha256']}", "--ctrl-img-3", f"upload:{used[1]['sha256']}", name="again"
    )

    assert sorted(f"upload:{each['sha256']}" for each in used) == sorted(uploads)
    assert [(each["slot"], each["width"], each["height"]) for each in used] == [(1, 96, 80), (3, 96, 64)]
    assert picture(edited).tobytes() != picture(plain).tobytes()
    assert picture(edited).tobytes() == picture(again).tobytes()
    # The file says how it was made.
    embedded = json.loads(picture(edited).text["flux2"])
    assert [embedded["ctrl_img"], embedded["ctrl_img_3"]] == [f"upload:{each['sha256']}" for each in used]
