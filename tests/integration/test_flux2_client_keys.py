"""The client and its commands at an API that needs a key."""

import time

import anyio
import pytest

from flux2_client import AsyncClient, Client
from shared.cli import main
from shared.errors import ApiError

REQUEST = {"model": "flux2", "prompts": [{"prompt": "a cat", "width": 64, "height": 64}], "loras": []}


def text(key):
    return key["Authorization"].removeprefix("Bearer ")


def flux2(monkeypatch, capsys, *arguments):
    monkeypatch.setattr("sys.argv", ["flux2", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    captured = capsys.readouterr()
    return ended.value.code, captured.out + captured.err


def test_both_clients_send_their_key(api, make_key):
    key = text(make_key())

    with Client(api.url, api_key=key) as client:
        job = client.submit(REQUEST)
        assert [line.request_id for line in client.requests()] == [job.request_id]
        assert client._http.headers["authorization"] == f"Bearer {key}"
        assert "authorization" not in client._store.headers

    async def status():
        async with AsyncClient(api.url, api_key=key) as client:
            return await client.status(job.request_id)

    assert anyio.run(status).status == "in_queue"


def test_a_refusal_says_what_to_do(api, make_key):
    make_key()

    with Client(api.url) as client, pytest.raises(ApiError, match=r"UNAUTHORIZED.*set FLUX2_API_KEY") as missing:
        client.models()
    with Client(api.url, api_key="flux2_wrong") as client, pytest.raises(ApiError, match="came from --api-key"):
        client.models()
    with (
        Client(api.url, api_key=text(make_key(roles=["submit"]))) as client,
        pytest.raises(ApiError, match="needs the role 'read'"),
    ):
        client.models()

    assert missing.value.status == 401
    assert not missing.value.retryable


def test_a_limit_of_the_day_is_reported_at_once(api, make_key):
    key = text(make_key(items_per_day=1))
    # The last quarter of an hour of a day is short enough to wait for.
    with Client(api.url, api_key=key, retry_s=0) as client:
        client.submit(REQUEST)
        began_s = time.monotonic()
        with pytest.raises(ApiError, match=r"key_limit_reached: .* images in a day \(UTC\)"):
            client.submit(REQUEST)

    assert time.monotonic() - began_s < 5


def test_the_commands_take_a_key_from_an_option_the_environment_and_a_profile(
    api, make_key, monkeypatch, capsys, tmp_path
):
    key = text(make_key())
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "flux2").mkdir()
    (tmp_path / "flux2/config.toml").write_text(f'[profiles.mine]\nurl = "{api.url}"\napi_key = "{key}"\n')

    code, output = flux2(monkeypatch, capsys, "list", "--url", api.url)
    assert code == 1
    assert "UNAUTHORIZED" in output
    for arguments in (["--url", api.url, "--api-key", key], ["--profile", "mine"]):
        assert flux2(monkeypatch, capsys, "list", *arguments)[0] == 0
        assert flux2(monkeypatch, capsys, "adapters", "list", *arguments)[0] == 0
    monkeypatch.setenv("FLUX2_API_KEY", key)
    code, output = flux2(monkeypatch, capsys, "list", "--url", api.url)
    assert code == 0
    assert "unknown setting" not in output


def test_rm_of_another_tenants_upload_deletes_none_of_the_callers(api, make_key, goldens, monkeypatch, capsys):
    monkeypatch.setenv("FLUX2_API_KEY", text(make_key(tenant="studio")))
    file = str(goldens / "adapters/lora_r4_bf16.safetensors")
    path = flux2(monkeypatch, capsys, "adapters", "push", file, "--name", "robot", "--url", api.url)[1].strip()

    code, output = flux2(monkeypatch, capsys, "adapters", "rm", path, "upload:other/robot", "--url", api.url)

    assert (code, "no upload of yours is named upload:other/robot" in output) == (1, True), output
    assert path.startswith("upload:studio/robot@")
    assert path in flux2(monkeypatch, capsys, "adapters", "list", "--url", api.url)[1]
    assert flux2(monkeypatch, capsys, "adapters", "rm", path, "--url", api.url) == (0, f"deleted {path}\n")
