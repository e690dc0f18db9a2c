"""The benchmark of adapter files runs, and checks the files that it names."""

import json

from benchmarks import adapters


def test_the_benchmark_checks_a_lora_and_the_largest_headers(capsys):
    adapters.main(rank=4, submits=20, new_files=2, large=2, at_once=2, as_json=True)

    rows = {row["file"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert rows["LoRA, unchanged"]["size_bytes"] > 48_000_000
    assert rows["LoRA, new"]["checks"] == 2
    assert rows["tags"]["header_bytes"] > 67_000_000
    assert rows["escapes, 2 at once"]["checks"] == 2
    assert all(0 < row["p50_ms"] <= row["p99_ms"] for row in rows.values())
