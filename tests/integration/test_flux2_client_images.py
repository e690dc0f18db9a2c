"""Reference images of this host: `flux2 submit --ctrl-img`, and the clients' method behind it, against a served API."""

import hashlib
import json

import anyio
import httpx2
import pytest
from PIL import Image
from typer.testing import CliRunner

from flux2_client import AsyncClient, Client
from flux2_client.commands import app
from shared.errors import ApiError, UploadRefused
from shared.job import FEATURES, pools


@pytest.fixture
def flux2(api):
    """Run a command in this process; the result has `exit_code`, `stdout` and `stderr`."""

    def run(*arguments, stdin=None):
        return CliRunner().invoke(app, [*map(str, arguments), "--url", api.url], input=stdin)

    return run


@pytest.fixture
def picture(tmp_path):
    """Return a function that draws an image file."""

    def draw(name, color="red", size=(96, 80), **options):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, color).save(path, **options)
        return path

    return draw


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def upload(path):
    return f"upload:{sha256(path)}"


def stored(api):
    return sorted(entry.key.partition("/")[2] for entry in api.store.list_objects("references", limit=99))


@pytest.fixture
def sent(api, monkeypatch):
    """The prompts of each submitted request."""
    requests = []
    submit = AsyncClient.submit

    async def noted(self, request, **options):
        requests.append(request["prompts"])
        return await submit(self, request, **options)

    monkeypatch.setattr(AsyncClient, "submit", noted)
    return requests


def test_both_clients_upload_an_image_from_a_file_or_from_bytes(api, picture):
    path = picture("photo.png", size=(1400, 900))

    async def upload_async():
        async with AsyncClient(api.url) as client:
            return await client.upload_image(path), await client.upload_image(path.read_bytes())

    with Client(api.url) as client:
        first, second = client.upload_image(path), client.upload_image(path.read_bytes())

    assert first == second
    assert anyio.run(upload_async) == (first, first)
    assert (first.path, first.size_bytes) == (upload(path), path.stat().st_size)
    assert (first.width, first.height, first.effective_width, first.effective_height) == (1400, 900, 1264, 816)
    assert stored(api) == [sha256(path)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "photo.png cannot be read: No such file or directory; name an image file"),
        (b"GIF89a" + bytes(100), "photo.png: the file is a GIF; save it as one of the formats PNG, JPEG, WEBP, BMP"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_by_name_and_not_sent(tmp_path, content, message):
    path = tmp_path / "photo.png"
    if content:
        path.write_bytes(content)

    with Client("http://127.0.0.1:1") as client, pytest.raises(UploadRefused) as refusal:
        client.upload_image(path)

    assert str(refusal.value).endswith(message)


def test_a_refusal_of_the_api_names_the_file(api, serve_api, picture):
    path = picture("photo.png")
    references = api.settings.references.model_copy(update={"max_bytes": 1000})
    path.write_bytes(path.read_bytes() + bytes(1000))
    with (
        serve_api(api.settings.model_copy(update={"references": references})) as small,
        Client(small.url) as client,
        pytest.raises(ApiError, match=rf"^{path}: BODY_TOO_LARGE: the file has") as error,
    ):
        client.upload_image(path)

    assert error.value.status == 413


def test_a_large_image_that_the_service_has_is_not_sent_again(api, picture, monkeypatch):
    path = picture("photo.bmp", size=(400, 300))
    sent = []
    send = Client._perform

    def noted(self, step):
        sent.append((step.method, step.path.split("/")[2], len(step.body or b"")))
        return send(self, step)

    monkeypatch.setattr(Client, "_perform", noted)
    with Client(api.url) as client:
        first, second = client.upload_image(path), client.upload_image(path)

    assert first == second
    get, post = ("GET", "uploads", 0), ("POST", "uploads", path.stat().st_size)
    assert sent == [get, post, get]


def test_an_upload_is_repeated_when_the_api_is_busy(api, picture):
    path = picture("photo.png")
    slots, errors = api.services.image_slots, []
    free, slots._free = slots._free, 0

    def leave(error):
        errors.append(error.status)
        slots._free = free

    with Client(api.url, on_failure=leave) as client:
        assert client.upload_image(path).path == upload(path)

    assert errors == [503]


def test_a_submit_uploads_its_image_and_names_the_upload(flux2, api, picture, sent):
    path = picture("photo.jpg", size=(1400, 900))

    done = flux2("submit", "-p", "a", "-p", "b", "--seed", "1,2", "--ctrl-img", path)

    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith(f"uploaded {path}: {upload(path)}, 1400x900, used at 1264x816\nsubmitted ")
    assert [prompt["ctrl_img"] for prompt in sent[0]] == [upload(path)] * 4
    assert stored(api) == [sha256(path)]


def test_json_says_what_was_uploaded(flux2, picture):
    path = picture("photo.png")

    uploaded, submitted = map(json.loads, flux2("submit", "-p", "a", "--ctrl-img", path, "--json").stdout.splitlines())

    assert (uploaded["event"], uploaded["file"], uploaded["path"]) == ("uploaded", str(path), upload(path))
    assert (uploaded["width"], uploaded["effective_height"]) == (96, 80)
    assert submitted["event"] == "submitted"


def test_three_references_go_into_their_slots(flux2, picture, sent):
    first, third = picture("1.png"), picture("3.webp", "blue")

    done = flux2("submit", "-p", "a", "--ctrl-img", first, "--ctrl-img-2", upload(first), "--ctrl-img-3", third)

    assert done.exit_code == 0, done.stderr
    [[prompt]] = sent
    assert [prompt[name] for name in ("ctrl_img", "ctrl_img_2", "ctrl_img_3")] == [
        upload(first),
        upload(first),
        upload(third),
    ]


def test_each_content_is_uploaded_once_whatever_its_files_are_called(flux2, picture, tmp_path, sent, monkeypatch):
    red, same, blue = picture("red.png"), picture("folder/same.png"), picture("blue.png", "blue")
    lines = [
        {"prompt": "a", "ctrl_img": str(red)},
        {"prompt": "b", "ctrl_img": str(same), "ctrl_img_2": str(blue)},
        {"prompt": "c", "ctrl_img": "red.png"},
        {"prompt": "d", "ctrl_img": None},
        {"prompt": "e"},
    ]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    monkeypatch.chdir(tmp_path)

    done = flux2("submit", "--prompts", "prompts.jsonl", "--ctrl-img", blue)

    assert done.exit_code == 0, done.stderr
    assert sorted(line.split()[1] for line in done.stdout.splitlines()[:-1]) == [f"{blue}:", f"{red}:"]
    assert [prompt["ctrl_img"] for prompt in sent[0]] == [upload(red), upload(red), upload(red), None, upload(blue)]
    assert sent[0][1]["ctrl_img_2"] == upload(blue)


def test_the_first_reference_of_a_prompt_wins_over_the_option_under_both_of_its_names(flux2, picture, sent):
    red, blue = picture("red.png"), picture("blue.png", "blue")

    done = flux2(
        "submit", "--prompts", "-", "--ctrl-img", blue, stdin=json.dumps({"prompt": "a", "ctrl_img_1": str(red)})
    )

    assert done.exit_code == 0, done.stderr
    assert sent[0][0]["ctrl_img"] == upload(red)


def test_a_request_file_may_name_files_of_this_host_too(flux2, picture, tmp_path, sent):
    path = picture("photo.png")
    request = {"model": "flux2", "prompts": [{"prompt": "a", "ctrl_img_1": str(path)}], "loras": []}
    (tmp_path / "request.json").write_text(json.dumps(request))

    done = flux2("submit", tmp_path / "request.json")

    assert done.exit_code == 0, done.stderr
    assert sent == [[{"prompt": "a", "ctrl_img_1": upload(path)}]]


def test_more_images_than_one_request_may_name_become_several_jobs(serve_api, api, picture, tmp_path):
    files = [picture(f"{index}.png", (index, 0, 0)) for index in range(5)]
    (tmp_path / "prompts").write_text("\n".join(json.dumps({"prompt": "a", "ctrl_img": str(path)}) for path in files))
    references = api.settings.references.model_copy(update={"max_images": 2})

    with serve_api(api.settings.model_copy(update={"references": references})) as small:
        done = CliRunner().invoke(app, ["submit", "--prompts", str(tmp_path / "prompts"), "--json", "--url", small.url])

    assert done.exit_code == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["images"] for event in events if event["event"] == "submitted"] == [2, 2, 1]
    assert sorted(event["file"] for event in events if event["event"] == "uploaded") == sorted(map(str, files))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("photo.png", "'photo.png' is no file of this host; give an image file, an https:// or s3:// address"),
        ("/", "'/' is no file of this host"),
        ("notes.txt", "notes.txt: the file is no image, or its beginning is damaged"),
    ],
)
def test_a_text_that_names_no_image_is_refused_before_anything_is_sent(
    flux2, api, picture, tmp_path, monkeypatch, text, message
):
    (tmp_path / "notes.txt").write_text("hello")
    monkeypatch.chdir(tmp_path)

    refused = flux2("submit", "-p", "a", "--ctrl-img", picture("other.png"), "--ctrl-img-2", text)

    assert (refused.exit_code, refused.stdout) == (1, "")
    assert refused.stderr.startswith(message)
    assert len(refused.stderr.splitlines()) == 1
    assert stored(api) == []


def test_an_option_without_an_image_is_refused(flux2, sent):
    refused = flux2("submit", "-p", "a", "--ctrl-img-2", "")

    assert (refused.exit_code, refused.stdout, sent) == (2, "", [])
    assert "--ctrl-img-2 is empty; give an image, or leave the option out" in refused.stderr


def test_a_file_that_changes_while_it_is_uploaded_starts_no_job(flux2, api, picture, sent, monkeypatch):
    path, copy = picture("photo.png"), picture("copy.png")
    upload_image = AsyncClient.upload_image

    async def changed(self, image):
        picture("photo.png", "blue")
        return await upload_image(self, image)

    monkeypatch.setattr(AsyncClient, "upload_image", changed)
    refused = flux2("submit", "-p", "a", "--ctrl-img", path, "--ctrl-img-2", copy)

    assert (refused.exit_code, refused.stdout, sent) == (1, "", [])
    assert refused.stderr.startswith(f"{path} has changed while the command ran; run it again")


def test_the_same_key_starts_nothing_new_although_the_image_is_sent_again(flux2, picture):
    path = picture("photo.png")

    first, second = (
        flux2("submit", "-p", "a", "--ctrl-img", path, "--idempotency-key", "k", "--json").stdout.splitlines()[-1]
        for _ in range(2)
    )

    assert json.loads(first)["request_id"] == json.loads(second)["request_id"]


@pytest.fixture
def edited(flux2, api, picture, finish):
    """A finished job of two images, made from a red and a blue picture: its id and the two files."""
    red, blue = picture("red.png"), picture("blue.png", "blue")
    submitted = flux2("submit", "-p", "a", "-p", "b", "--ctrl-img", red, "--ctrl-img-3", blue, "--json")
    request_id = json.loads(submitted.stdout.splitlines()[-1])["request_id"]
    for _ in range(2):
        finish(api, api.ledger.claim_next(pools("flux2", ["exact"], FEATURES), slot="s", boot="b", warm="base"))
    return request_id, red, blue


def test_a_result_says_which_references_made_each_image(flux2, api, edited):
    request_id, red, blue = edited

    for_people = flux2("result", request_id).stdout
    [answer] = map(json.loads, flux2("result", request_id, "--json").stdout.splitlines())
    with Client(api.url) as client:
        images = client.result(request_id).images

    assert for_people.count(f"  reference 1: {upload(red)}, used at 64x80\n") == 2
    assert for_people.count(f"  reference 3: {upload(blue)}, used at 64x80\n") == 2
    for image in images:
        assert [(each.slot, each.path) for each in image.references] == [(1, upload(red)), (3, upload(blue))]
    references = answer["outputs"]["images"][1]["references"]
    assert [httpx2.get(reference.pop("url")).content for reference in references] == [
        red.read_bytes(),
        blue.read_bytes(),
    ]
    assert references == [
        {"slot": 1, "sha256": sha256(red), "width": 64, "height": 80},
        {"slot": 3, "sha256": sha256(blue), "width": 64, "height": 80},
    ]


def test_a_download_says_which_references_made_each_image(flux2, edited, tmp_path):
    request_id, red, blue = edited

    lines = flux2("download", request_id, "--output", tmp_path / "out").stdout
    events = map(json.loads, flux2("download", request_id, "--output", tmp_path / "out", "--json").stdout.splitlines())

    assert lines.count(f"  reference 1: {upload(red)}, used at 64x80\n") == 2
    saved = [event for event in events if event["event"] == "image"]
    assert [[each["sha256"] for each in event["references"]] for event in saved] == [[sha256(red), sha256(blue)]] * 2


def test_the_references_of_a_result_make_another_image(flux2, api, edited):
    request_id, _, blue = edited
    with Client(api.url) as client:
        reference = client.result(request_id).images[0].references[1]

    assert flux2("submit", "-p", "again", "--ctrl-img", reference.path).exit_code == 0
    assert reference.path == upload(blue)
