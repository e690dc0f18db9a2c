"""The text of a `ctrl_img` becomes an image or the place of one, or a message that says what to write instead."""

import base64

import pytest

from shared.errors import ReferenceRefused
from shared.reference_source import InlineImage, UploadedImage, check_size, parse_reference
from shared.sources.source import HttpsFile, HubFile, S3Object

DATA = bytes(range(251))
BASE64 = base64.b64encode(DATA).decode()
DIGEST = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    "text",
    [
        BASE64,
        BASE64.rstrip("="),
        base64.urlsafe_b64encode(DATA).decode(),
        base64.encodebytes(DATA).decode(),
        f"data:image/png;base64,{BASE64}",
        f"DATA:image/PNG;charset=x;BASE64,{BASE64}",
        f"data:;base64,{BASE64}",
    ],
)
def test_an_image_in_the_request_may_be_written_in_each_usual_way(text):
    source = parse_reference(text)

    assert isinstance(source, InlineImage)
    assert source.decode(max_bytes=len(DATA)) == DATA


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"upload:{DIGEST}", UploadedImage(DIGEST)),
        (f"upload:{DIGEST.upper()}", UploadedImage(DIGEST)),
        ("s3://bucket/in.png", S3Object("bucket", "in.png")),
        ("hf://owner/repo/in.png@v1", HubFile("owner/repo", "in.png", "v1")),
        ("https://huggingface.co/owner/repo/blob/main/in.png", HubFile("owner/repo", "in.png")),
        # Only the image's sha256 is stored, so the address may carry a signature.
        ("https://cdn.example.com/in.png?X-Amz-Signature=abc", HttpsFile("https://cdn.example.com/in.png?X-Amz-Signature=abc")),
    ],
)  # fmt: skip
def test_an_address_names_the_file_at_its_source(text, expected):
    assert parse_reference(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data:image/png,abc", "a data URL must hold an image in base64"),
        ("data:" + ";x" * 50 + ";base64,abc", "a data URL must hold an image in base64"),
        ("upload:abc", "an uploaded image is named by its sha256 alone"),
        (f"upload:my.safetensors@{DIGEST}", "named by its sha256 alone: upload:SHA256"),
        ("ftp://host/in.png", "is a ftp address"),
        ("file:///etc/passwd", "is a file address"),
        ("https://user:password@host/in.png", "holds a user name or password"),
    ],
)
def test_a_text_that_names_no_image_is_refused(text, message):
    with pytest.raises(ReferenceRefused, match=message) as refused:
        parse_reference(text)

    assert "password@" not in str(refused.value)


@pytest.mark.parametrize(
    "text", ["in.png", "folder/in.png", "C:\\in.png", "\ud800", "abc!", "é" * 40, "A", "/etc/passwd", "photo"]
)
def test_what_is_not_base64_is_refused_without_repeating_it(text):
    with pytest.raises(ReferenceRefused, match="neither an image in base64 nor an address") as refused:
        parse_reference(text).decode(max_bytes=10_000)

    assert text not in str(refused.value).split("; give ")[0]


def test_an_image_that_is_too_large_is_refused_before_it_is_decoded():
    with pytest.raises(ReferenceRefused, match=r"251 bytes, and FLUX2_REFERENCES_MAX_BYTES is 250"):
        parse_reference(BASE64).decode(max_bytes=250)
    with pytest.raises(ReferenceRefused, match=r"1,001 bytes"):
        check_size(1001, max_bytes=1000)
    check_size(1000, max_bytes=1000)


def test_the_representation_of_an_image_does_not_hold_its_text():
    assert BASE64[:10] not in repr(parse_reference(BASE64))
