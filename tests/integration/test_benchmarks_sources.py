"""The benchmark of remote adapters runs, and its submits read a small part of each file."""

import json

from benchmarks import sources


def test_the_benchmark_counts_what_a_submit_reads_of_a_large_file(capsys):
    sources.main(rank=4, submits=3, new_files=2, as_json=True)

    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    reads = {row["read"]: row for row in rows if "read" in row}
    times = {row["adapter"]: row for row in rows if "adapter" in row}
    assert all(row["size_bytes"] > 48_000_000 for row in reads.values())
    assert all(1 <= row["requests"] <= 5 and 0 < row["bytes_read"] < 300_000 for row in reads.values())
    assert reads["S3, again"]["bytes_read"] < reads["S3"]["bytes_read"]
    assert [times[f"{kept}, known"]["submits"] for kept in ("local", "S3", "web server")] == [3, 3, 3]
    assert all(0 < row["p50_ms"] <= row["p99_ms"] for row in times.values())
