"""Fuzzing of headers. What is accepted here, the format's own library opens and reads the same; noise is refused.

`make fuzz-headers` runs many more examples than `make test`, and other ones each time.
"""

import json
import math
import os
import struct

import pytest
import safetensors
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from shared.adapters.header import read_header
from shared.errors import AdapterRefused
from shared.safetensors_header import DTYPE_BITS

LIMIT = 1 << 30
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
FUZZ = settings(
    max_examples=EXAMPLES or 400,
    derandomize=not EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.safetensors"


def frame(text, data=b""):
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw + data


@st.composite
def sound_files(draw):
    """(entries, data) of a file with 1 to 4 tensors."""
    entries = {}
    position = 0
    for name in draw(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=4, unique=True)):
        dtype = draw(st.sampled_from(["F32", "F16", "BF16", "I8", "F64"]))
        shape = draw(st.lists(st.integers(0, 4), max_size=3))
        size = math.prod(shape) * DTYPE_BITS[dtype] // 8
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, position + size]}
        position += size
    return entries, bytes(position)


ODD = st.one_of(
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=True),
    st.none(),
    st.booleans(),
    st.text(max_size=5),
    st.lists(st.integers(-2, 20), max_size=3),
    st.lists(st.sampled_from([0, 1, 2**31, 2**62, 2**63, 2**64]), max_size=5),
    st.just({}),
)


@st.composite
def corrupted_files(draw):
    """Bytes of a file that was sound before one thing was changed."""
    entries, data = draw(sound_files())
    name = draw(st.sampled_from(sorted(entries)))
    how = draw(st.sampled_from(["field", "offset", "bytes", "cut", "tail", "length", "drop"]))
    if how == "field":
        entries[name][draw(st.sampled_from(["dtype", "shape", "data_offsets", "new"]))] = draw(ODD)
    if how == "offset":
        side = draw(st.integers(0, 1))
        entries[name]["data_offsets"][side] += draw(st.sampled_from([-8, -1, 1, 2, 8, 2**31, 2**63]))
    if how == "drop":
        del entries[name]
    raw = json.dumps(entries).encode()
    file = bytearray(struct.pack("<Q", len(raw)) + raw + data)
    if how == "bytes":
        for _ in range(draw(st.integers(1, 4))):
            file[draw(st.integers(0, len(file) - 1))] = draw(st.integers(0, 255))
    if how == "cut":
        del file[draw(st.integers(0, len(file) - 1)) :]
    if how == "tail":
        file += draw(st.binary(min_size=1, max_size=20))
    if how == "length":
        file[:8] = struct.pack("<Q", draw(st.integers(0, 2**64 - 1) | st.integers(0, 300)))
    return bytes(file)


def mostly(usual, odd, *, one_in=16):
    """Draw from `odd` one time in `one_in`, else from `usual`, so that a text is sound about as often as not."""
    return st.integers(1, one_in).flatmap(lambda number: st.sampled_from(odd if number == one_in else usual))


# Spellings that JSON allows, and those that it almost allows.
SPACES = mostly(["", "", " ", "\n", "\t\r "], ["\f", "\u00a0", "/**/", ","], one_in=200)
ZEROS = mostly(["0"], ["-0", "00", "+0", "0.0", "0e0", "0E5", "-0.0", "1", "false", "null", '"0"', "NaN", "", "[0]"])
SIZES = mostly(["0", "1", "2"], ["-0", "1.0", "4611686018427387904", "18446744073709551616", "true"])
DTYPES = mostly(['"U8"', '"\\u00558"', '"F64"'], ['"u8"', '"F4"', '"F6_E2M3"', "null", '"U8\\n"', "8"])
CHARACTERS = mostly(
    ["a", "b", "狐", "🦊", "\x7f", "\\n", "\\/", "\\u0061", "\\u0000", "\\ud83e\\udd8a"],
    ["\\ud83e", "\\udd8a", "\\x", "\\", '"', "\0"],
    one_in=50,
)
NAMES = st.lists(CHARACTERS, min_size=1, max_size=4).map("".join)


@st.composite
def odd_texts(draw):
    """Headers as nobody writes them; their tensors have no bytes."""
    members = []
    for _ in range(draw(st.integers(0, 3))):
        shape = draw(st.permutations(["0", *draw(st.lists(SIZES, max_size=3))]))
        fields = [
            f'"dtype"{draw(SPACES)}:{draw(SPACES)}{draw(DTYPES)}',
            f'"shape":{draw(SPACES)}[{",".join(shape)}{draw(SPACES)}]',
            f'"data_offsets":[{draw(ZEROS)},{draw(SPACES)}{draw(ZEROS)}]',
        ]
        entry = ",".join(draw(st.permutations(fields)))
        members.append(f'{draw(SPACES)}"{draw(NAMES)}"{draw(SPACES)}:{draw(SPACES)}{{{entry}}}{draw(SPACES)}')
    if draw(st.booleans()):
        values = [f'"{draw(NAMES)}":{draw(SPACES)}"{draw(NAMES)}"' for _ in range(draw(st.integers(0, 3)))]
        members.insert(draw(st.integers(0, len(members))), f'"__metadata__":{{{",".join(values)}}}')
    return f"{{{','.join(members)}}}{draw(SPACES)}"


def theirs(content):
    return {
        name: (tensor["dtype"], tuple(tensor["shape"]), len(tensor["data"]))
        for name, tensor in safetensors.deserialize(content)
    }


def ours(path):
    tensors = read_header(path, max_bytes=LIMIT).tensors
    return {name: (info.dtype, info.shape, info.end - info.start) for name, info in tensors.items()}


def their_metadata(path):
    with safetensors.safe_open(path, "np") as opened:
        return opened.metadata() or {}


def reason_of(path):
    try:
        read_header(path, max_bytes=LIMIT)
    except AdapterRefused as error:
        return str(error)
    return None


def check_like_the_library(path, content):
    path.write_bytes(content)

    if (reason := reason_of(path)) is None:
        assert ours(path) == theirs(content)
        assert read_header(path, max_bytes=LIMIT).metadata == their_metadata(path)
    else:
        assert reason.startswith("x.safetensors: ")
        assert len(reason) < 1500
        assert reason.isprintable()


@FUZZ
@given(sound_files())
def test_every_sound_file_is_read_as_the_library_reads_it(path, file):
    entries, data = file
    path.write_bytes(frame(json.dumps(entries), data))

    assert ours(path) == theirs(path.read_bytes())


@FUZZ
@given(corrupted_files())
def test_a_corrupted_file_is_refused_or_is_one_that_the_library_reads_the_same(path, content):
    check_like_the_library(path, content)


@FUZZ
@given(odd_texts())
def test_an_odd_text_is_refused_or_is_one_that_the_library_reads_the_same(path, text):
    check_like_the_library(path, frame(text))


@FUZZ
@given(st.integers(65_500, 65_560), CHARACTERS, st.booleans())
def test_a_character_at_the_edge_of_a_piece_is_read_as_elsewhere(path, padding, character, is_sound):
    assume(character not in ('"', "\\"))
    text = f'{{"__metadata__":{{"a":"{"x" * padding}{character}y"{"}" if is_sound else ""}}}'

    check_like_the_library(path, frame(text))


@FUZZ
@given(st.binary(max_size=200), st.booleans())
def test_noise_is_refused(path, noise, framed):
    path.write_bytes(struct.pack("<Q", len(noise)) + noise if framed else noise)

    with pytest.raises(AdapterRefused):
        read_header(path, max_bytes=LIMIT)
