"""The benchmark of scrapes runs, for the fleets that it is given."""

import json

from benchmarks import scrape


def test_the_benchmark_measures_scrapes_and_heartbeats(capsys):
    scrape.main(slots="2", tenants=3, repeats=2, as_json=True)

    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    measured = ["scrape: 2 slots, 3 tenants", "heartbeat", "heartbeat with the counts of an image"]
    assert [row["what"] for row in rows] == measured
    assert all(row["p50_ms"] > 0 for row in rows)
    assert rows[2]["bytes"] > rows[1]["bytes"] > 0
