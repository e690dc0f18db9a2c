"""A short run of `make fuzz`, and whether its additions to schemathesis find what they look for."""

import pytest
from schemathesis.core.failures import Failure
from schemathesis.openapi.checks import RejectedPositiveData

from fuzz import hooks
from fuzz.run import fuzz
from fuzz.samples import ADAPTER_PATH, make_adapter

# With the tool's start, the run takes 20 s. A busy host may need more to come to the first case.
SHORT_S = (12, 60, 240)
RULES = {"LORA_NOT_FOUND": "The file exists.", "VALIDATION_ERROR": "Samples keep the limits of a prompt."}


class Operation:
    """An operation of a document, as the hooks read it."""

    label = "POST /v1/replays"

    def __init__(self, *, rules, responses=()):
        self.raw = {"x-rules": rules, "responses": {status: {} for status in responses}}

    @property
    def definition(self):
        return self


class Case:
    path = "/v1/replays"

    def __init__(self, operation):
        self.operation = operation


class Answer:
    def __init__(self, status, problem):
        self.status_code = status
        self.headers = {"content-type": ["application/problem+json"]}
        self._problem = problem

    def json(self):
        return self._problem


def refusal(code, *paths):
    errors = [{"path": path, "message": "too large"} for path in paths]
    return Answer(422, {"status": 422, "code": code, "detail": "no", "errors": errors})


@pytest.mark.timeout(600)
def test_schemathesis_finds_nothing_in_the_live_api(api, make_key, adapter_root):
    adapter = adapter_root / ADAPTER_PATH
    adapter.parent.mkdir(parents=True)
    adapter.write_bytes(make_adapter(0))
    key = make_key(roles=("submit", "read", "admin"))

    for seconds in SHORT_S:
        run = fuzz(api.url, key, seconds=seconds, options=["--seed", "1", "--max-examples", "5"])
        if run.cases:
            break

    assert run.is_sound, run.output
    assert run.cases > 0


@pytest.mark.parametrize(
    ("answer", "is_finding"),
    [
        (refusal("LORA_NOT_FOUND"), False),
        (refusal("INVALID_LORA"), True),
        # A sample of the config, which is no part of the body's schema; and a field of the body, which is.
        (refusal("VALIDATION_ERROR", "[0].prompts[0].width"), False),
        (refusal("VALIDATION_ERROR", "[0].prompts[0].width", "lora"), True),
        # No schema says that noise levels decrease.
        (refusal("VALIDATION_ERROR", "prompts[3].sigmas"), False),
        (refusal("VALIDATION_ERROR", "prompts[3].sigmas[0]"), True),
    ],
)
def test_a_sound_request_may_be_refused_for_a_rule_of_the_document_alone(answer, is_finding):
    failure = RejectedPositiveData(operation="", message="", status_code=422, allowed_statuses=["2xx"])

    assert hooks.filter_failure(None, failure, Case(Operation(rules=RULES)), answer) == is_finding


def test_no_rule_excuses_another_failure():
    failure = Failure(operation="", title="Server error", message="")

    assert hooks.filter_failure(None, failure, Case(Operation(rules=RULES)), refusal("LORA_NOT_FOUND"))


def test_a_status_that_the_document_does_not_list_is_a_finding():
    case = Case(Operation(rules={}, responses=["202", "422", "default"]))

    assert hooks.listed_status(None, refusal("X"), case) is None
    with pytest.raises(Failure, match="400"):
        hooks.listed_status(None, Answer(400, {"code": "X"}), case)


@pytest.mark.parametrize(
    "problem", [{}, {"status": 400, "code": "X", "detail": "no"}, {"status": 422, "code": "", "detail": "no"}]
)
def test_an_error_without_a_problem_of_its_own_is_a_finding(problem):
    case = Case(Operation(rules={}))

    assert hooks.named_problem(None, refusal("X"), case) is None
    with pytest.raises(Failure, match="422"):
        hooks.named_problem(None, Answer(422, problem), case)
