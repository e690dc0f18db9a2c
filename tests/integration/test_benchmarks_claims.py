"""The benchmark of claims runs, and compares the sizes that it is given."""

import json

from benchmarks import claims


def test_the_benchmark_compares_fleets_and_queues_of_several_sizes(capsys):
    claims.main(slots="2,8", tenants="3,50", items=500, claims=20, rate_s=0.2, as_json=True)

    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["slots"], row["tenants"]) for row in rows] == [(2, 200), (8, 200), (8, 3), (8, 50)]
    assert [row["ratio_cpu"] for row in rows[::2]] == [1.0, 1.0]
    assert all(0 < row["redis_p50_ms"] <= row["client_p99_ms"] for row in rows)
    assert all(row["claims_and_commits_a_second"] > 0 for row in rows)
    # An item has a row of some 300 bytes, and its parameters.
    assert all(500 < row["bytes_an_item"] < 3000 for row in rows)


def test_the_table_keeps_its_columns_in_a_pipe(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")

    claims.main(slots="2", tenants="3", items=300, claims=20, rate_s=0.1, as_json=False)

    header, *rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert header[:4] == ["slots", "tenants", "items", "client_p50_ms"]
    assert [(len(row), row[0], row[1]) for row in rows] == [(len(header), "2", "200"), (len(header), "8", "3")]
