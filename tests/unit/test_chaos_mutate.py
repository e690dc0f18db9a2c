"""The lines that the chaos runs rewrite are lines of the scripts: a rewrite that finds none would prove nothing."""

from chaos import clock, mutate
from shared.ledger import lua


def test_every_script_reads_the_time_where_a_run_sets_the_clock():
    texts = {name: text for name, text in lua.scripts().items() if clock._READS_TIME in text}

    assert {"claim_next", "reap", "renew"} <= texts.keys()
    assert [name for name, text in texts.items() if text.count(clock._TIME) != 1] == []


def test_the_lines_that_mutations_remove_occur_once():
    lines = [
        ("commit", mutate._FENCE),
        ("commit", mutate._COUNT),
        ("renew", mutate._OWNED),
        ("reap", mutate._GRACE),
    ]

    assert [lua.scripts()[name].count(line) for name, line in lines] == [1] * len(lines)
