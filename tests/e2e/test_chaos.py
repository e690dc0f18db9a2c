"""A small chaos run; `make chaos` is the whole one. A failure prints the seed and the folder of the history."""

import math
import secrets

import pytest

from chaos.mutate import Mutation
from chaos.scenarios import deaths, redis_trouble, stalls
from chaos.storm import storm
from chaos.trial import Lab


@pytest.fixture(scope="module")
def lab(tmp_path_factory, s3_server):
    # Other tests share the processors; `make chaos` alone judges times.
    return Lab(tmp_path_factory.mktemp("chaos"), s3_server, secrets.randbelow(2**32), patience=math.inf)


def verdict(lab, outcome):
    return f"seed {lab.seed}, history in {lab.folder}: {outcome.figures} {outcome.violations}"


def test_nothing_is_lost_or_doubled_in_a_storm(lab):
    outcome = storm(lab, jobs=30)

    assert outcome.violations == [], verdict(lab, outcome)
    assert outcome.figures["kills"] >= 3
    assert outcome.figures["items"] >= 90


@pytest.mark.parametrize("scenario", [deaths.lost_message, deaths.zombies, deaths.hung_kernel, stalls.replica])
def test_a_scenario_breaks_no_promise(lab, scenario):
    outcome = scenario(lab)

    assert outcome.violations == [], verdict(lab, outcome)


@pytest.mark.parametrize("scenario", [redis_trouble.grace, stalls.frozen])
def test_the_checker_finds_violations_when_leases_get_no_grace(lab, scenario):
    outcome = scenario(lab, mutation=Mutation.GRACE)

    assert outcome.violations != [], verdict(lab, outcome)
