"""`flux2 compare` with the demonstration model: pairs, figures and a page that needs no network."""

import json
import re

import pytest
from PIL import Image, ImageChops
from typer.testing import CliRunner

from flux2_client.commands import app
from shared.demo_model import DEMO_ADAPTER
from worker.rendering.sigmas import sigmas

PROMPTS = ["a red <b>fox</b>", "a blue house\u202e"]


@pytest.fixture
def compare(stack, client, tmp_path):
    """Compare the prompts at 64x64 in this process; returns the command's result and its folder."""

    def run(*options):
        words = [word for prompt in PROMPTS for word in ("-p", prompt)]
        output = tmp_path / "pages"
        arguments = ["compare", *words, "--size", "64", "--url", stack.url, "--output", str(output), *options]
        return CliRunner().invoke(app, arguments), output

    return run


def test_the_page_shows_pairs_with_their_differences_and_needs_no_network(compare):
    done, folder = compare("--a", "sample_steps=6", "--b", "sample_steps=2", "--b", f"lora={DEMO_ADAPTER}")

    assert done.exit_code == 0, done.output
    page = (folder / "index.html").read_text()
    places = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert sorted(set(places)) == [
        f"images/000{number}-{name}" for number in (1, 2) for name in ("a.png", "b.png", "difference.webp")
    ]
    assert all((folder / place).is_file() for place in places)
    assert not re.search(r"https?:|<script|<b>|\u202e", page)
    assert "1. a red &lt;b&gt;fox&lt;/b&gt;" in page
    assert "6 steps, guidance 4, engine exact (fp32)" in page
    assert f"2 steps, guidance 4, engine exact (fp32), {DEMO_ADAPTER} at 1" in page
    one, other = (Image.open(folder / f"images/0002-{way}.png") for way in "ab")
    assert one.size == other.size == (64, 64)
    assert ImageChops.difference(one, other).getbbox()
    assert "seed 42, PSNR" in page
    assert "seed 43, PSNR" in page
    assert re.search(r"PSNR of 2 pairs: median \d+\.\d dB", done.stdout)
    assert f"page: {folder}/index.html" in done.stdout


# The API would draw two seeds for -1.
@pytest.mark.parametrize("seed", ["7", "-1"])
def test_the_trainers_own_noise_levels_are_equal_to_that_many_steps(seed, compare):
    levels = ",".join(f"{level:.9g}" for level in sigmas(3, 16)[:-1])

    done, _ = compare("--a", "sample_steps=3", "--b", f"sigmas={levels}", f"--seed={seed}", "--json")

    assert done.exit_code == 0, done.output
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (summary["event"], summary["pairs"], summary["equal"]) == ("compared", 2, 2)
    assert summary["median_psnr_db"] is None
    assert set(summary["median_denoise_s"]) == {"A", "B"}


def test_a_way_that_the_api_refuses_leaves_nothing_of_the_other_one_running(compare, client):
    done, _ = compare("--a", "sample_steps=150", "--b", "preset=turboo")

    assert done.exit_code == 1
    assert "has no preset 'turboo'; use one of: turbo" in done.output
    newest = next(iter(client.requests()))
    assert newest.items["succeeded"] == 0
    assert client.wait(newest.request_id, timeout_s=60).status == "canceled"


def test_two_equal_ways_are_a_mistake(compare):
    done, folder = compare("--a", "sample_steps=3", "--b", "sample_steps=3")

    assert done.exit_code == 2
    assert "both ways are the same" in done.output
    assert not folder.exists()
