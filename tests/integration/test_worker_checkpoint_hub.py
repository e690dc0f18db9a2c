"""Downloads from a hub: a local server with the hub's answers, and no hub."""

import logging
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import constants

from shared.errors import CheckpointError
from shared.settings import ModelSettings
from worker.checkpoint import download_log
from worker.checkpoint.hub_cache import require_cached_model
from worker.checkpoint.locate import locate_checkpoint

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {"flux2-dev.safetensors": bytes(24_000_000), "ae.safetensors": b"autoencoder"}


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does for small files, which are not in its store of chunks."""

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.wfile.write(self.answer())

    def answer(self):
        """Send the headers; return the body."""
        body = FILES.get(self.path.rpartition("/")[2])
        self.send_response(404 if body is None else 200)
        if body is None:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("ETag", f'"{len(body or b"")}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        return body or b""

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """An empty cache, and a hub that has the transformer and the autoencoder of any repository."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", url)
        template = url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def text_encoder(tmp_path):
    folder = tmp_path / "text_encoder"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return str(folder)


def test_a_download_logs_how_far_it_is(hub, text_encoder, caplog, monkeypatch):
    monkeypatch.setattr(download_log, "_EVERY_S", 0.0)
    caplog.set_level(logging.INFO, "flux2")

    found = locate_checkpoint(ModelSettings(path="owner/name", text_encoder=text_encoder), hf_token=None)

    lines = [record for record in caplog.records if record.message == "downloading"]
    assert found.commit == COMMIT
    assert found.transformer.weights[0].stat().st_size == 24_000_000
    states = [(line.done_gb, line.total_gb) for line in lines if line.file == "flux2-dev.safetensors"]
    assert states == [(0.01, 0.02), (0.02, 0.02), (0.02, 0.02)]


def test_a_repository_without_the_models_file_is_named_with_the_settings_to_change(hub, text_encoder):
    settings = ModelSettings(id="flux2_klein_4b", path="owner/copy", text_encoder=text_encoder)

    with pytest.raises(CheckpointError) as refused:
        locate_checkpoint(settings, hf_token=None)

    assert str(refused.value) == (
        "the repository 'owner/copy' has no flux-2-klein-base-4b.safetensors; set FLUX2_MODEL_ID to the model that it "
        "holds, or correct FLUX2_MODEL_PATH or FLUX2_MODEL_REVISION"
    )


def test_an_offline_host_needs_every_file_of_a_repository_in_its_cache(hub, text_encoder, monkeypatch):
    settings = ModelSettings(path="owner/name", text_encoder=text_encoder)
    require_cached_model(ModelSettings(path="owner/missing"))
    locate_checkpoint(settings, hf_token=None)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    require_cached_model(settings)
    with pytest.raises(CheckpointError, match=r"'owner/missing' .* flux2-dev.safetensors .* HF_HUB_OFFLINE forbids"):
        require_cached_model(ModelSettings(path="owner/missing", text_encoder=text_encoder))
    with pytest.raises(CheckpointError, match=r"'owner/encoder' .* config.json .* HF_HUB_OFFLINE forbids"):
        require_cached_model(ModelSettings(path="owner/name", text_encoder="owner/encoder"))


def test_an_offline_host_says_what_is_missing_and_which_variable_forbids_it(hub, text_encoder, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    with pytest.raises(CheckpointError, match=r"'owner/name' .* flux2-dev.safetensors .* HF_HUB_OFFLINE forbids"):
        locate_checkpoint(ModelSettings(path="owner/name", text_encoder=text_encoder), hf_token=None)


@pytest.mark.parametrize("path", ["/no/such/folder", "./models", "~/models/FLUX.2-dev"])
def test_a_path_that_is_no_folder_never_reaches_the_hub(path, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))

    with pytest.raises(CheckpointError, match="no such folder"):
        locate_checkpoint(ModelSettings(path=path), hf_token=None)
