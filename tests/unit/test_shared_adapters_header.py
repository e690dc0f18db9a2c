"""Headers of strangers' files: what is sound is read exactly, everything else is refused with its reason."""

import json
import os
import pickle
import struct
import time
import tracemalloc
import zipfile

import pytest

from shared.adapters.header import MAX_HEADER_BYTES, read_header
from shared.adapters.header_json import MAX_TENSORS, MAX_VALUE_CHARS, Header
from shared.errors import AdapterNotFound, AdapterRefused
from shared.safetensors_header import TensorInfo

LIMIT = 1 << 30

# Two tensors of 8 and 4 bytes.
ENTRIES = {
    "a.lora_A.weight": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [0, 8]},
    "a.lora_B.weight": {"dtype": "F32", "shape": [1], "data_offsets": [8, 12]},
}
DATA = bytes(range(12))


def file_of(path, header, data=DATA, *, length=None):
    """Write a file whose header is `header` (an object, a text or bytes), with a length that may lie."""
    if not isinstance(header, str | bytes):
        header = json.dumps(header)
    raw = header if isinstance(header, bytes) else header.encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


def entry(**changes):
    return {"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12], **changes}}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.safetensors"


def test_a_sound_header_is_read_as_it_is_written(path):
    file_of(path, {"__metadata__": {"format": "pt"}, **ENTRIES})

    header = read_header(path, max_bytes=LIMIT)

    assert header == Header(
        tensors={
            "a.lora_A.weight": TensorInfo("BF16", (2, 2), 0, 8),
            "a.lora_B.weight": TensorInfo("F32", (1,), 8, 12),
        },
        metadata={"format": "pt"},
    )


def test_tensors_keep_the_headers_order_even_if_their_data_has_another(path):
    file_of(path, dict(reversed(ENTRIES.items())))

    assert list(read_header(path, max_bytes=LIMIT).tensors) == ["a.lora_B.weight", "a.lora_A.weight"]


def test_padding_spaces_unicode_names_and_scalars_are_sound(path):
    file_of(path, json.dumps({"狐": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}}) + "    ", bytes(4))

    assert read_header(path, max_bytes=LIMIT).tensors == {"狐": TensorInfo("F32", (), 0, 4)}


def test_an_empty_file_of_the_format_has_no_tensors(path):
    file_of(path, "{}", b"")

    assert read_header(path, max_bytes=LIMIT) == Header({}, {})


@pytest.mark.parametrize(
    ("header", "data", "reason"),
    [
        ('{"a": ', b"", "not described by an object"),
        ('{"a" 1}', b"", "not valid JSON"),
        ('{"a": 1,}', b"", "not described by an object"),
        ("{1: 2}", b"", "not valid JSON"),
        ('{"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]},}', DATA, "not valid JSON"),
        ('{} {"a": 1}', b"", "text after its JSON"),
        ('{"a": {"dtype": "F32" "shape": [3], "data_offsets": [0, 12]}}', DATA, "'a': its entry is not valid JSON"),
        ('{"\\ud800": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}}', DATA, "not valid JSON"),
        (b'{"\xff": 1}', b"", "not UTF-8 at byte 10"),
        ('["a", "b"]', b"", "not a JSON object"),
        (" {}", b"", "not a JSON object"),
        (
            json.dumps({"n" * 2000: ENTRIES["a.lora_B.weight"]}),
            DATA,
            "a name in the header has more than 256 characters",
        ),
        ('{"a": ' + "[" * 100_000, b"", "not described by an object"),
        ('{"a": {"b": ' * 100_000, b"", "its entry is not valid JSON|not described by an object"),
        ('{"a": {"dtype": "F32", "shape": ' + "[" * 900 + "}", b"", "its entry is not valid JSON"),
        (entry(dtype="F33"), DATA, "'a': unknown dtype 'F33'"),
        (entry(dtype=None), DATA, "unknown dtype None"),
        (entry(shape=[-3]), DATA, r"shape \[-3\] is not a list"),
        (entry(shape=[3.0]), DATA, "shape"),
        (entry(shape=[True, 3]), DATA, "shape"),
        (entry(shape="3"), DATA, "shape '3' is not a list"),
        (entry(shape=[4]), DATA, r"'a': F32 of shape \[4\] takes 16 bytes, but data_offsets give it 12"),
        (entry(shape=[2**62, 4]), DATA, "takes 73786976294838206464 bytes"),
        (entry(shape=[10**18]), DATA, "takes 4000000000000000000 bytes"),
        (entry(data_offsets=[12, 0]), DATA, "are not .start, end."),
        (entry(data_offsets=[0]), DATA, "are not .start, end."),
        (entry(data_offsets=[-12, 0]), DATA, "data_offsets"),
        (entry(extra=1), DATA, "expected dtype, shape and data_offsets once each"),
        ({"a": {"dtype": "F32", "shape": [3]}}, DATA, "expected dtype, shape and data_offsets once each"),
        ('{"a": {"dtype": "F32", "dtype": "F32", "shape": [3], "data_offsets": [0, 12]}}', DATA, "once each"),
        (entry(data_offsets=[4, 16]), DATA, "'a' starts at 4, after a gap"),
        (entry(), DATA[:8], "'a' ends at 12, but the data is cut off at 8"),
        (entry(), DATA + b"tail", "4 bytes follow the last tensor"),
        ({}, DATA, "12 bytes follow the last tensor"),
        (
            {**entry(), "b": {"dtype": "F32", "shape": [1], "data_offsets": [8, 12]}},
            DATA,
            "'b' starts at 8, inside the tensor before it",
        ),
        (
            {**entry(shape=[1], data_offsets=[0, 4]), "b": {"dtype": "F32", "shape": [1], "data_offsets": [8, 12]}},
            DATA,
            "'b' starts at 8, after a gap",
        ),
        ('{"a": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}, "a": 1}', b"", "names 'a' twice"),
        ({"__metadata__": {"a": 1}}, b"", "__metadata__ 'a' is not a string"),
        ({"__metadata__": {"a": {"b": "c"}}}, b"", "__metadata__ 'a' is not a string"),
        ({"__metadata__": ["a"]}, b"", "__metadata__ is not an object"),
        ('{"__metadata__": {"a": "1", "a": "2"}}', b"", "__metadata__ names 'a' twice"),
        ('{"__metadata__": {}, "__metadata__": {}}', b"", "names '__metadata__' twice"),
        ({"__metadata__": {str(number): "" for number in range(1001)}}, b"", "more than 1000 entries"),
    ],
)
def test_an_unsound_header_is_refused_and_the_message_says_where(path, header, data, reason):
    file_of(path, header, data)

    with pytest.raises(AdapterRefused, match=reason):
        read_header(path, max_bytes=LIMIT)


def test_long_values_of_metadata_are_left_out_and_short_ones_kept(path):
    values = {"thumbnail": "x" * (MAX_VALUE_CHARS + 1), "a": "\\\n狐" * 9, **{f"b{n}": "y" * 10**6 for n in range(5)}}
    file_of(path, {"__metadata__": values}, b"")

    header = read_header(path, max_bytes=LIMIT)

    assert header.omitted == {"thumbnail", "b4"}  # in all, 4 MiB are kept
    assert header.metadata == {name: value for name, value in values.items() if name not in header.omitted}


def test_a_long_value_that_decides_the_strength_is_refused(path):
    file_of(path, {"__metadata__": {"lora_adapter_metadata": "x" * (MAX_VALUE_CHARS + 1)}}, b"")

    with pytest.raises(AdapterRefused, match="'lora_adapter_metadata' is too long to be read"):
        read_header(path, max_bytes=LIMIT)


@pytest.mark.parametrize(
    ("length", "reason"),
    [
        (0, "header of 0 bytes"),
        (1, "header of 1 bytes"),
        (2**63, "header should have 9223372036854775808 bytes, but only 1[0-9]+ follow"),
        (2**64 - 1, "header should have 18446744073709551615 bytes"),
        (500, "header should have 500 bytes, but only 1[0-9]+ follow"),
        (MAX_HEADER_BYTES + 1, f"header should have {MAX_HEADER_BYTES + 1} bytes"),
    ],
)
def test_an_impossible_header_length_is_refused(path, length, reason):
    file_of(path, ENTRIES, length=length)

    with pytest.raises(AdapterRefused, match=reason):
        read_header(path, max_bytes=LIMIT)


def test_a_header_over_the_cap_is_refused_unread(path):
    file_of(path, "{}", b"", length=100 * 1024**2 + 1)
    os.truncate(path, 200 * 1024**2)  # a hole: takes no room on disk

    with pytest.raises(AdapterRefused, match="has 104857601 bytes, and the limit is 67108864"):
        read_header(path, max_bytes=LIMIT)


def test_a_file_over_the_limit_is_refused_unread(path):
    file_of(path, ENTRIES)

    with pytest.raises(AdapterRefused, match="and the limit is 100"):
        read_header(path, max_bytes=100)


@pytest.mark.parametrize("content", [b"", b"\0\0\0"])
def test_a_file_shorter_than_a_length_is_refused(path, content):
    path.write_bytes(content)

    with pytest.raises(AdapterRefused, match="takes 8"):
        read_header(path, max_bytes=LIMIT)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"<!DOCTYPE html><html><head><title>404</title></head></html>", "an HTML page"),
        (b"\n\n<html>" + b" " * 500, "an HTML page"),
        (pickle.dumps({"weights": [1.0] * 10}, protocol=2), "a PyTorch pickle"),
        (pickle.dumps({"weights": [1.0] * 10}, protocol=4), "a PyTorch pickle"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "a Git LFS pointer"),
        (b'{"error": "Repository not found"}', "a JSON document"),
        (b"GGUF\x03\0\0\0" + bytes(100), "a GGUF file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "a PNG image"),
    ],
)
def test_a_file_of_another_format_is_refused_by_the_formats_name(path, content, kind):
    path.write_bytes(content)

    with pytest.raises(AdapterRefused, match=f"not a safetensors file; this is {kind}"):
        read_header(path, max_bytes=LIMIT)


def test_a_pytorch_archive_is_refused_and_its_pickle_is_not_run(path, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "it ran"),))

    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Bomb()))

    with pytest.raises(AdapterRefused, match="a zip archive"):
        read_header(path, max_bytes=LIMIT)

    assert not (tmp_path / "it ran").exists()


def test_a_missing_file_is_not_found_and_a_folder_is_refused(path, tmp_path):
    with pytest.raises(AdapterNotFound, match=r"x\.safetensors"):
        read_header(path, max_bytes=LIMIT)
    with pytest.raises(AdapterRefused, match="not a regular file"):
        read_header(tmp_path, max_bytes=LIMIT)


def many(count):
    one = '"t{}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'
    return "{" + ",".join(one.format(number) for number in range(count)) + "}"


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (many(MAX_TENSORS), None),
        (many(MAX_TENSORS + 1), "more than 20000 tensors"),
        (many(1_000_000), "more than 20000 tensors"),
        ('{"a": [' + "0," * 4_000_000, "not described by an object"),
        ('{"__metadata__": {"a": "' + "\U0001f98a" * 2_000_000 + '"}}', None),
    ],
    ids=["as many as allowed", "one too many", "a million", "a list bomb", "long metadata"],
)
def test_the_worst_headers_take_little_time_and_memory(path, header, reason):
    file_of(path, header, b"")
    usual_s = processor_s(lambda: json.loads(many(MAX_TENSORS)))

    took_s = processor_s(lambda: reason_of(path))
    outcome = reason_of(path)
    tracemalloc.start()
    reason_of(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert reason is None if outcome is None else reason in outcome
    assert took_s < 30 * usual_s  # a second or two; of the file's JSON alone the largest takes 70 times
    assert peak < 64 * 1024**2


def processor_s(call):
    started = time.process_time()
    call()
    return time.process_time() - started


def reason_of(path):
    try:
        read_header(path, max_bytes=LIMIT)
    except AdapterRefused as error:
        return str(error)
    return None
