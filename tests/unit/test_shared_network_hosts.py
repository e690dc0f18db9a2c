"""Settings that name hosts: which names they match, whose token goes where, and messages that hold no token."""

import json

import pytest
from pydantic import ValidationError

from shared.network.hosts import HostHeaders, HostPatterns, PrivateHosts
from shared.settings import Settings, SourcesSettings

TOKEN = "Bearer c1v1-secret"


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("civitai.com", True),
        ("cdn.hf.co", True),
        ("a.b.hf.co", True),
        ("hf.co", False),
        ("evilhf.co", False),
        ("civitai.com.evil.example", False),
        ("www.civitai.com", False),
        ("hf.co.evil.example", False),
        ("", False),
    ],
)
def test_a_star_stands_for_every_name_below_a_suffix(host, expected):
    assert HostPatterns.parse(" Civitai.com, *.hf.co,").matches(host) is expected


@pytest.mark.parametrize(
    "text",
    ["https://civitai.com", "civitai.com/x", "civitai.com:443", "*", "*.com", "a.*.com", "bücher.example"],
)
def test_a_part_that_is_no_host_name_is_refused(text):
    with pytest.raises(ValueError, match="is not a host; write names such as"):
        HostPatterns.parse(f"hf.co,{text}")


def test_a_private_host_is_one_host_with_one_port():
    hosts = PrivateHosts.parse("Mirror.lan:8080, 10.0.0.5:80,[fd00::5]:443").adding("hub.lan", 8443)

    assert hosts.contains("mirror.lan", 8080)
    assert hosts.contains("fd00::5", 443)
    assert hosts.contains("hub.lan", 8443)
    assert not hosts.contains("mirror.lan", 80)
    assert PrivateHosts.parse(str(hosts)) == hosts


@pytest.mark.parametrize("text", ["mirror.lan", "mirror.lan:0", "mirror.lan:65536", "http://mirror.lan:80", "*.lan:80"])
def test_a_private_host_without_a_usable_port_is_refused(text):
    with pytest.raises(ValueError, match=r"is not a host and a port; write them as in mirror.lan:8080"):
        PrivateHosts.parse(text)


def test_a_header_belongs_to_one_host_and_port_and_never_shows():
    headers = HostHeaders.parse(json.dumps({"Civitai.com": f"Authorization: {TOKEN}", "mirror.lan:8080": "X-Key:k3y"}))

    assert headers.get("civitai.com", 443) == ("Authorization", TOKEN)
    assert headers.get("mirror.lan", 8080) == ("X-Key", "k3y")
    assert headers.get("civitai.com", 80) is None
    assert headers.get("www.civitai.com", 443) is None
    assert "c1v1" not in f"{headers} {headers!r}"
    assert "k3y" not in f"{headers} {headers!r}"


@pytest.mark.parametrize(
    "text",
    [
        TOKEN,
        f"civitai.com={TOKEN}",
        json.dumps([TOKEN]),
        json.dumps({"civitai.com": TOKEN}),
        json.dumps({"civitai.com": [TOKEN]}),
        json.dumps({"civitai.com": f"Host: {TOKEN}"}),
        json.dumps({"civitai.com": f"Range: {TOKEN}"}),
        json.dumps({"civitai.com": f"Authorization: {TOKEN}\r\nHost: evil.example"}),
        json.dumps({"civitai.com": f"Authorization: {TOKEN} ö"}),
        json.dumps({"https://civitai.com": f"Authorization: {TOKEN}"}),
        json.dumps({"*.civitai.com": f"Authorization: {TOKEN}"}),
    ],
)
def test_unusable_headers_are_refused_without_their_values(text, monkeypatch):
    monkeypatch.setenv("FLUX2_SOURCES_HTTPS_HEADERS", text)

    with pytest.raises(ValidationError) as refused:
        Settings()

    assert "https_headers" in str(refused.value)
    assert "c1v1" not in str(refused.value)


def test_headers_in_the_environment_show_in_no_text_of_the_settings(monkeypatch):
    monkeypatch.setenv("FLUX2_SOURCES_HTTPS_HEADERS", json.dumps({"civitai.com": f"Authorization: {TOKEN}"}))

    settings = Settings()

    assert settings.sources.https_headers.get("civitai.com", 443) == ("Authorization", TOKEN)
    assert "c1v1" not in f"{settings!r} {settings.model_dump()} {settings.model_dump_json()}"


def test_the_default_hosts_are_the_hub_and_civitai_with_their_stores():
    hosts = SourcesSettings().https_hosts

    store = "civitai-delivery-worker-prod.5ac0637cfd0766c97916cefa3764fbdf.r2.cloudflarestorage.com"
    for host in ("huggingface.co", "cdn-lfs.huggingface.co", "cas-bridge.xethub.hf.co", "b2.civitai.com", store):
        assert hosts.matches(host)
    assert not hosts.matches("other.r2.cloudflarestorage.com")
