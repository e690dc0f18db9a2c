"""The text of `loras[].path` names one file, wherever it is kept."""

from __future__ import annotations

import pytest

from shared.errors import AdapterRefused
from shared.sources.source import HttpsFile, HubFile, LocalFile, S3Object, Source, UploadedFile, parse_source

_COMMIT = "0123456789abcdef0123456789abcdef01234567"
_SHA256 = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("my_job/my_lora.safetensors", LocalFile("my_job/my_lora.safetensors")),
        ("C:/loras/a.safetensors", LocalFile("C:/loras/a.safetensors")),
        ("a@b.safetensors", LocalFile("a@b.safetensors")),
        ("hf://ann/robots/robot.safetensors", HubFile("ann/robots", "robot.safetensors", "main")),
        ("hf://ann/robots/v2/robot.safetensors@v1.0", HubFile("ann/robots", "v2/robot.safetensors", "v1.0")),
        (f"hf://ann/robots@{_COMMIT}/robot.safetensors", HubFile("ann/robots", "robot.safetensors", _COMMIT)),
        ("hf://ann/robots/robot.safetensors@refs/pr/3", HubFile("ann/robots", "robot.safetensors", "refs/pr/3")),
        ("hf://ann/robots/a%40b%25.safetensors@main", HubFile("ann/robots", "a@b%.safetensors", "main")),
        ("hf://ann/robots/my%20robot.safetensors", HubFile("ann/robots", "my robot.safetensors", "main")),
        ("HF://ann/robots/robot.safetensors", HubFile("ann/robots", "robot.safetensors", "main")),
        (
            "https://huggingface.co/ann/robots/blob/main/robot.safetensors",
            HubFile("ann/robots", "robot.safetensors", "main"),
        ),
        (
            f"https://huggingface.co/ann/robots/resolve/{_COMMIT}/v%202/robot.safetensors?download=true",
            HubFile("ann/robots", "v 2/robot.safetensors", _COMMIT),
        ),
        (
            "https://hf.co/ann/robots/blob/refs%2Fpr%2F3/robot.safetensors",
            HubFile("ann/robots", "robot.safetensors", "refs/pr/3"),
        ),
        (
            "https://huggingface.co/ann/robots/blob/refs/pr/3/robot.safetensors",
            HubFile("ann/robots", "robot.safetensors", "refs/pr/3"),
        ),
        ("s3://my-loras/jobs/a b.safetensors", S3Object("my-loras", "jobs/a b.safetensors")),
        (
            "https://civitai.com/api/download/models/123?type=Model&format=SafeTensor",
            HttpsFile("https://civitai.com/api/download/models/123?type=Model&format=SafeTensor"),
        ),
        ("HTTPS://Example.COM/a.safetensors#top", HttpsFile("https://example.com/a.safetensors")),
        ("http://Mirror.lan:8080/a.safetensors", HttpsFile("http://mirror.lan:8080/a.safetensors")),
        ("http://huggingface.co/ann/robots/blob/main/a.safetensors", HubFile("ann/robots", "a.safetensors", "main")),
        ("upload:robot.safetensors", UploadedFile("robot.safetensors")),
        (f"upload:robot@{_SHA256}", UploadedFile("robot", _SHA256)),
    ],
)
def test_a_text_names_a_source_whose_spelling_names_it_again(text: str, source: Source) -> None:
    assert parse_source(text) == source
    assert parse_source(str(source)) == source


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("ftp://example.com/a.safetensors", "is a ftp address; use a path under the adapter root, hf://"),
        ("file:///etc/passwd", "is a file address"),
        ("s3:my-bucket/key", "needs two slashes: s3://"),
        ("hf:ann/robots/a.safetensors", "needs two slashes: hf://"),
        ("hf://ann/robots", "names a repository; name one of its files: hf://ann/robots/FILE.safetensors"),
        ("hf://ann", "for an owner or repository"),
        ("hf://ann/../a.safetensors", "for an owner or repository"),
        ("hf://ann/robots/../a.safetensors", "holds an empty part, '.' or '..'"),
        ("hf://ann/robots/%2e%2e/a.safetensors", "holds an empty part, '.' or '..'"),
        ("hf://ann/robots/a.safetensors@../x", "has the revision '../x'"),
        ("https://huggingface.co/ann/robots", "does not name a file; open the file on the hub"),
        ("https://huggingface.co/ann/robots/tree/main/v2", "does not name a file; open the file on the hub"),
        ("https://huggingface.co/datasets/ann/robots/blob/main/a.safetensors", "is in a repository of datasets"),
        ("s3://my-loras", "names no object; write s3://BUCKET/KEY"),
        ("s3://my-loras/folder/", "names no object"),
        ("s3://my loras/a", "for a bucket"),
        ("s3://my-loras/a/../b", "holds an empty part, '.' or '..'"),
        ("s3://my-loras/" + "x" * 1025, "has a key of 1025 bytes, and the limit is 1024"),
        ("https://user:secret@example.com/a.safetensors", "holds a user name or password"),
        ("https://example.com/a b.safetensors", "holds a character that a URL must escape"),
        ("https://example.com/ä.safetensors", "holds a character that a URL must escape"),
        ("https:///a.safetensors", "names no host"),
        ("https://example.com:99999/a.safetensors", "is not a URL"),
        ("https://example.com/" + "a" * 4096, "has 4116 characters, and the limit is 4096"),
        ("https://example.com/a\n.safetensors", "holds a character that no address can have"),
        ("https://civitai.com/api/download/models/1?token=secret", "carries a secret in 'token'"),
        ("https://git.example.com/a?private_token=secret", "carries a secret in 'private_token'"),
        ("https://example.com/a?Password=secret", "carries a secret in 'Password'"),
        ("https://example.com/a?accessToken=secret", "carries a secret in 'accessToken'"),
        ("https://example.com/a?x-oss-signature=secret", "carries a secret in 'x-oss-signature'"),
        ("https://example.com/a?X-Goog-Credential=secret", "carries a secret in 'X-Goog-Credential'"),
        ("https://example.com/a?__token__=secret", "carries a secret in '__token__'"),
        ("https://www.dropbox.com/scl/fi/a/a?rlkey=secret", "carries a secret in 'rlkey'"),
        ("https://b.s3.amazonaws.com/a?X-Amz-Signature=secret", "carries a secret in 'X-Amz-Signature'"),
        ("upload:", "names no upload; write upload:NAME"),
        ("upload:../a", "names no upload"),
        ("upload:robot@main", "must have the 64 hexadecimal digits of a sha256"),
    ],
)
def test_a_text_that_names_no_file_is_refused_with_its_reason(text: str, reason: str) -> None:
    with pytest.raises(AdapterRefused) as caught:
        parse_source(text)
    assert reason in str(caught.value)
    assert "secret@" not in str(caught.value)
    assert "=secret" not in str(caught.value)
    assert caught.value.field == "path"
