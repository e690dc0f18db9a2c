"""Over 300 hostile files: a submit refuses each with a reason, quickly, and reads no byte after the header."""

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import textwrap
import time

import pytest

from shared.adapters import header, opened
from shared.adapters.header import MAX_HEADER_BYTES
from shared.adapters.validate import validate_adapters
from shared.catalog import MODELS
from shared.errors import AdapterCheckBusy, AdapterRefused
from shared.request import LoraItem
from shared.settings import AdaptersSettings

LAYER = "diffusion_model.double_blocks.0.img_attn.proj.lora_"
A, B = f"{LAYER}A.weight", f"{LAYER}B.weight"
# A LoRA of rank 2 for a layer of 4 by 4: 16 bytes of each half.
SOUND = {
    A: {"dtype": "BF16", "shape": [2, 4], "data_offsets": [0, 16]},
    B: {"dtype": "BF16", "shape": [4, 2], "data_offsets": [16, 32]},
}
TEXT = json.dumps(SOUND)
DATA = b"secret data that nothing may see"
# A tensor without bytes, so that any number of them covers no data.
EMPTY = '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'


def frame(text, data=DATA, *, length=None):
    raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def changed(field, literal):
    """The sound header with one field of its first tensor written as `literal`."""
    return frame(TEXT.replace(json.dumps(SOUND[A][field]), literal, 1))


def cut_headers():
    """The sound header, cut after each third character, with a length that fits what is left."""
    return {f"cut after {end}": frame(TEXT[:end]) for end in range(2, len(TEXT), 3)}


NUMBERS = {
    "negative": "-1",
    "a negative zero": "-0",
    "a fraction": "0.5",
    "a float": "16.0",
    "an exponent": "16e0",
    "a huge exponent": "1e400",
    "a tiny exponent": "1e-400",
    "not a number": "NaN",
    "infinity": "Infinity",
    "minus infinity": "-Infinity",
    "above 63 bits": str(2**63),
    "above 64 bits": str(2**64),
    "900 digits": "9" * 900,
    "with a leading zero": "016",
    "with a plus": "+16",
    "hexadecimal": "0x10",
    "a string": '"16"',
    "null": "null",
    "true": "true",
    "a list": "[16]",
    "an object": "{}",
    "nothing": "",
    "a name": "sixteen",
    "deep": "[" * 400 + "]" * 400,
}


def odd_numbers():
    return {
        f"{field} {place} {name}": changed(field, pattern.format(literal))
        for name, literal in NUMBERS.items()
        for field, place, pattern in (
            ("data_offsets", "start", "[{},16]"),
            ("data_offsets", "end", "[0,{}]"),
            ("shape", "size", "[{},4]"),
        )
    }


OTHER_VALUES = ("null", "true", "16", '"16"', "{}", "[]", "[[]]", "[0,16,32]", "[16]", "[16,0]")


def odd_fields():
    return {
        f"{field} is {literal}": changed(field, literal)
        for field in ("data_offsets", "shape")
        for literal in OTHER_VALUES
    }


def odd_dtypes():
    names = ("F33", "", "bf16", "BF16 ", "F8_E4M3FN", "Q4_0", "BF16\\u0000", "float16", "F" * 900)
    return {f"dtype {name[:20]!r}": changed("dtype", f'"{name}"') for name in names} | {
        f"dtype is {literal}": changed("dtype", literal) for literal in ("null", "1", "[]", "{}", "[[[]]]", "NaN")
    }


def odd_ranks():
    ones = {f"{count} dimensions": changed("shape", str([2, 4] + [1] * (count - 2))) for count in (9, 16, 64, 300)}
    return ones | {
        "rank 2^30": frame(
            json.dumps(
                {
                    A: {"dtype": "BF16", "shape": [2**30, 4], "data_offsets": [0, 2**33]},
                    B: {"dtype": "BF16", "shape": [4, 2**30], "data_offsets": [2**33, 2**34]},
                }
            )
        ),
        "sizes whose product overflows": changed("shape", str([2**62, 4, 2**62])),
        "a size of 0 among sizes whose product overflows": frame(
            json.dumps({A: {"dtype": "U8", "shape": [2**40, 2**40, 0], "data_offsets": [0, 0]}}), b""
        ),
    }


def zero_sizes():
    return {
        f"shape {shape} of {name[-8:]}": frame(
            json.dumps({name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}), b""
        )
        for name in (A, B, f"{LAYER[:-5]}alpha", f"{LAYER[:-5]}diff", f"{LAYER[:-5]}lokr_w1")
        for shape in ([0], [0, 4], [4, 0], [0, 0])
    }


def doubles():
    entry = json.dumps(SOUND[A])[1:-1]
    key = json.dumps(A)
    return {
        "a tensor twice": frame(f"{{{key}: {{{entry}}}, {key}: {{{entry}}}}}"),
        "a tensor twice, once escaped": frame(f'{{{key}: {{{entry}}}, "\\u0064{A[1:]}": {{{entry}}}}}'),
        "a tensor twice, without data": frame(f'{{"a":{EMPTY},"a":{EMPTY}}}', b""),
        "metadata twice": frame('{"__metadata__":{},"__metadata__":{}}', b""),
        "metadata twice, once escaped": frame('{"__metadata__":{},"\\u005f_metadata__":{}}', b""),
        "metadata names a key twice": frame('{"__metadata__":{"a":"1","a":"2"}}', b""),
        "metadata names a long value twice": frame(f'{{"__metadata__":{{"a":"{"x" * 2**21}","a":"2"}}}}', b""),
        **{
            f"{field} twice": frame(f'{{{key}: {{{entry}, "{field}": {json.dumps(SOUND[A][field])}}}}}')
            for field in SOUND[A]
        },
        **{
            f"{field} missing": frame(json.dumps({A: {name: SOUND[A][name] for name in SOUND[A] if name != field}}))
            for field in SOUND[A]
        },
        "a fourth field": frame(json.dumps({A: {**SOUND[A], "scale": 1}})),
    }


def odd_layouts():
    """Tensors that overlap, leave a hole, or end before or after the data."""
    spans = {
        "the same bytes": ((0, 16), (0, 16)),
        "an overlap": ((0, 16), (8, 24)),
        "a hole in the middle": ((0, 16), (24, 40)),
        "a hole at the start": ((8, 24), (24, 40)),
        "a hole of 2^40": ((0, 16), (2**40, 2**40 + 16)),
        "the end of 64 bits": ((0, 16), (2**63 - 17, 2**63 - 1)),
    }
    return (
        {
            name: frame(
                json.dumps({key: {**SOUND[key], "data_offsets": span} for key, span in zip((A, B), both, strict=True)}),
                DATA + bytes(8),
            )
            for name, both in spans.items()
        }
        | {f"{count} bytes are missing": frame(TEXT, DATA[:-count]) for count in (1, 2, 15, 16, 31, 32)}
        | {f"{count} bytes too many": frame(TEXT, DATA + bytes(count)) for count in (1, 8, 4096, 2**20)}
    )


def odd_names():
    names = {
        "257 characters": "n" * 257,
        "a megabyte": "n" * 2**20,
        "a megabyte of escapes": "\\u0041" * (2**20 // 6),
        "half a surrogate pair": "\\ud83e",
        "the second half": "\\udd8a",
        "the halves in the wrong order": "\\udd8a\\ud83e",
        "a half and a letter": "\\ud83ea",
        "a short escape": "\\u12",
        "an unknown escape": "\\x41",
        "an escape of letters": "\\uzzzz",
        "a raw line feed": "a\nb",
        "a raw zero": "a\0b",
        "an encoded surrogate": "\ud800",
        "no layer": "a",
        "nothing": "",
        "a path": "../../etc/passwd",
        "terminal codes": "\\u001b[2J",
    }
    return {f"a name: {what}": frame(f'{{"{name}":{EMPTY}}}', b"") for what, name in names.items()} | {
        f"a key of metadata: {what}": frame(f'{{"__metadata__":{{"{name}":"1"}}}}', b"") for what, name in names.items()
    }


def odd_metadata():
    values = ("1", "1.5", "null", "true", "[]", "{}", '{"b":"c"}', '["b"]', "NaN", "", "'b'", '"\\ud83e"', '"b', '"\\')
    return (
        {f"metadata a is {value}": frame(f'{{"__metadata__":{{"a":{value}}}}}', b"") for value in values}
        | {f"metadata is {value}": frame(f'{{"__metadata__":{value}}}', b"") for value in values}
        | {
            "1001 entries": frame(json.dumps({"__metadata__": {str(number): "" for number in range(1001)}}), b""),
            "a long value that never ends": frame(f'{{"__metadata__":{{"a":"{"x" * 2**21}', b""),
            "a long base": frame(f'{{"__metadata__":{{"ss_base_model_version":"{"x" * 2**21}"}}}}', b""),
            "a long value with half a pair": frame(f'{{"__metadata__":{{"a":"{"x" * 2**21}\\ud83e"}}}}', b""),
        }
    )


def bombs():
    return {
        f"{depth} nested {name}": frame(text * depth, b"")
        for name, text in {
            "objects": '{"a":',
            "entries": '{"a":{"b":',
            "metadata": '{"__metadata__":',
            "lists": '{"a":[[[[',
        }.items()
        for depth in (10, 1000, 100_000)
    } | {
        "nested values": frame(f'{{"a":{{"dtype":"F32","shape":{"[" * 450}{"]" * 450},"data_offsets":[0,0]}}}}', b""),
        "20,001 tensors": frame("{" + ",".join(f'"{number}":{EMPTY}' for number in range(20_001)) + "}", b""),
        "100,000 tensors": frame("{" + ",".join(f'"{number}":{EMPTY}' for number in range(10**5)) + "}", b""),
        "a long entry": frame(f'{{"a":{{"dtype":"F32",{" " * 2000}"shape":[0],"data_offsets":[0,0]}}}}', b""),
        "white space": frame("{" + " " * 2**22, b""),
    }


def odd_lengths():
    lengths = (0, 1, 2, len(TEXT) - 1, len(TEXT) + 1, len(TEXT) + 32, len(TEXT) + 33, MAX_HEADER_BYTES)
    huge = (MAX_HEADER_BYTES + 1, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
    return {f"a length of {length}": frame(TEXT, length=length) for length in (*lengths, *huge)}


def odd_text():
    entry = json.dumps(SOUND[A])
    texts = {
        "a byte-order mark": b"\xef\xbb\xbf" + TEXT.encode(),
        "UTF-16": TEXT.encode("utf-16-le"),
        "a space first": b" " + TEXT.encode(),
        "a list": b"[1,2]",
        "a string": b'"abc"',
        "text after it": TEXT.encode() + b" {}",
        "a zero after it": TEXT.encode() + b"\0",
        "half a character at its end": TEXT.encode() + "🦊".encode()[:2],
        "an overlong encoding": b'{"\xc0\xaf":1}',
        "a lone continuation": b'{"\x80":1}',
        "a trailing comma": TEXT[:-1].encode() + b",}",
        "two commas": TEXT.replace("}, ", "},, ", 1).encode(),
        "no colon": TEXT.replace('": {', '" {', 1).encode(),
        "single quotes": TEXT.replace('"', "'").encode(),
        "a comment": TEXT.replace("{", "{/* */", 1).encode(),
        "a form feed": TEXT.replace(", ", ",\f", 1).encode(),
        "a no-break space": TEXT.replace("}, ", "},\u00a0", 1).encode(),
        "an entry that is a list": f'{{"{A}": [{entry}]}}'.encode(),
        "an entry that is null": f'{{"{A}": null}}'.encode(),
        "an entry that is a number": f'{{"{A}": 1}}'.encode(),
        "an entry with an object inside": f'{{"{A}": {{"dtype": {entry}}}}}'.encode(),
    }
    return {f"the header: {name}": frame(text) for name, text in texts.items()}


def other_files():
    return {
        "no bytes": b"",
        "three bytes": b"\0\0\0",
        "eight bytes": struct.pack("<Q", 2),
        "an empty header": frame("{}", b""),
        "only zeros": bytes(4096),
        "only ones": b"\xff" * 4096,
        "an LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
        "an HTML page": b"<!DOCTYPE html><html><head><title>404</title></head></html>",
        "an HTML page after blank lines": b"\n\n<html>" + b" " * 500,
        "a JSON error": b'{"error": "Repository not found"}',
        "an XML error": b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>',
        "a text": b"Invalid username or password.",
        "a pickle": pickle.dumps({"weights": [1.0] * 10}, protocol=4),
        "a zip": b"PK\x03\x04" + bytes(100),
        "a GGUF file": b"GGUF\x03\0\0\0" + bytes(100),
    }


def hostile_files():
    families = (
        cut_headers, odd_numbers, odd_fields, odd_dtypes, odd_ranks, zero_sizes, doubles, odd_layouts, odd_names,
        odd_metadata, bombs, odd_lengths, odd_text, other_files,
    )  # fmt: skip
    return {name: content for family in families for name, content in family().items()}


FILES = hostile_files()


class WatchedFile(io.FileIO):
    """A file that remembers how far it was read."""

    end = 0

    def read(self, size=-1):
        content = super().read(size)
        WatchedFile.end = max(WatchedFile.end, self.tell())
        return content

    def readinto(self, buffer):
        count = super().readinto(buffer)
        WatchedFile.end = max(WatchedFile.end, self.tell())
        return count


@pytest.fixture
def watched(monkeypatch):
    """Watch the files that `open_adapter` opens."""
    WatchedFile.end = 0

    def open_watched(path, mode, *, buffering, opener):
        assert (mode, buffering) == ("rb", 0)
        return WatchedFile(path, mode, opener=opener)

    monkeypatch.setattr(opened, "open", open_watched, raising=False)
    return WatchedFile


def submit(file):
    lora = LoraItem(path=file.name)
    return validate_adapters([lora], MODELS["flux2"], layers=None, settings=AdaptersSettings(root=file.parent))


def end_of_header(content):
    """Where the data begins, in a file whose stated length fits it; its end in any other."""
    end = 8 + int.from_bytes(content[:8], "little")
    return min(end, len(content))


def test_there_are_more_than_300_hostile_files():
    assert len(FILES) > 300
    assert len(set(FILES.values())) > 300


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_file_is_refused_with_a_reason_and_no_byte_after_its_header_is_read(name, tmp_path, watched):
    content = FILES[name]
    file = tmp_path / "x.safetensors"
    file.write_bytes(content)
    started_s = time.process_time()

    with pytest.raises(AdapterRefused) as refusal:
        submit(file)

    message = str(refusal.value)
    assert watched.end <= end_of_header(content)
    assert time.process_time() - started_s < 3.0  # 20,001 tensors take 0.3 s
    assert 20 < len(message) < 1000
    assert message.isprintable()
    assert refusal.value.field == "loras[0].path"


def test_an_honest_file_is_read_beyond_its_header_only_for_its_digest(tmp_path, watched):
    file = tmp_path / "x.safetensors"
    file.write_bytes(frame(TEXT))

    [(ref, _)] = submit(file)

    assert ref.size_bytes == len(frame(TEXT))
    assert watched.end == len(frame(TEXT))


WORST = """
    import sys, threading, time
    from pathlib import Path

    from shared.adapters import header
    from shared.adapters.header import read_header
    from shared.errors import AdapterCheckBusy, AdapterRefused

    def peak_mib():
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024

    def read():
        try:
            read_header(Path(sys.argv[1]), max_bytes=2**40)
        except AdapterRefused:
            pass

    before = peak_mib()
    header._MAX_WAIT_S = 60.0  # all of them, however slow this machine is
    threads = [threading.Thread(target=read) for _ in range(int(sys.argv[2]))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(peak_mib() - before, time.process_time())
"""


def padded(start, unit, end):
    """A header of the largest size: `unit` repeated between a start and an end."""
    room = MAX_HEADER_BYTES - len(start.encode()) - len(end.encode())
    return start + unit * (room // len(unit.encode())) + end


def with_many_tensors():
    """As many tensors as allowed, with names of the largest size, and values that are kept up to the limit."""
    name = "x" * 248 + "🦊"
    sizes = "[0,10001,10002,10003,1,1,1,1]"
    tensors = ",".join(
        f'"{number:06}{name}":{{"dtype":"F32","shape":{sizes},"data_offsets":[0,0]{" " * 900}}}'
        for number in range(20_000)
    )
    values = ",".join(f'"k{number}":"{"x" * 1_040_000}🦊"' for number in range(36))
    return f'{{"__metadata__":{{{values}}},{tensors}}}'


START = '{"__metadata__":{"a":"'
LARGEST = {
    "honest tags": lambda: padded(START, '\\"a photo of a fox, sitting\\": 12, ', '"}}'),
    "a fox and letters": lambda: padded(f"{START}🦊", "x" * 1024, '"}}'),
    "escapes": lambda: padded(START, "\\n", '"}}'),
    "surrogate pairs": lambda: padded(START, "\\ud83e\\udd8a", '"}}'),
    "many tensors": with_many_tensors,
}


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="peak memory is read from /proc")
@pytest.mark.parametrize(("name", "threads"), [*((name, 1) for name in LARGEST), ("many tensors", 4)])
def test_the_largest_headers_take_little_memory_and_time_also_at_once(name, threads, tmp_path):
    text = LARGEST[name]().encode()
    assert 0.9 * MAX_HEADER_BYTES < len(text) <= MAX_HEADER_BYTES
    file = tmp_path / "x.safetensors"
    file.write_bytes(frame(text, b""))

    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(WORST), str(file), str(threads)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip

    peak_mib, took_s = map(float, done.stdout.split())
    assert peak_mib < 50 * (1 if threads == 1 else 1.5)  # 1 to 48; of the file's JSON alone, 576
    assert took_s < 5 * threads  # 0.2 to 1.0 s


def test_a_large_header_that_waits_too_long_for_another_one_is_refused_for_now(tmp_path, monkeypatch):
    file = tmp_path / "x.safetensors"
    file.write_bytes(frame(f'{{"__metadata__":{{"a":"{"x" * 2**20}"}}}}', b""))
    small = tmp_path / "small.safetensors"
    small.write_bytes(frame(TEXT))
    monkeypatch.setattr(header, "_MAX_WAIT_S", 0.01)

    with header._large_header:
        with pytest.raises(AdapterCheckBusy, match="try again later"):
            header.read_header(file, max_bytes=2**30)
        assert header.read_header(small, max_bytes=2**30).tensors

    assert header.read_header(file, max_bytes=2**30).omitted == set()
