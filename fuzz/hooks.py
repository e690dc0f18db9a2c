"""What schemathesis cannot know by itself: sound files, rules that no schema states, and statuses that count.

Schemathesis imports this module, because `SCHEMATHESIS_HOOKS` names it.
"""

from __future__ import annotations

from typing import Any, Final

import schemathesis
from hypothesis import strategies as st
from schemathesis import Case, CheckContext, HookContext, Response
from schemathesis.core.failures import Failure
from schemathesis.openapi.checks import RejectedPositiveData

from fuzz.samples import make_adapter, make_image

# No fault where the document of an operation leaves them out: they come before its endpoint, or instead of it.
_UNLISTED: Final = frozenset({401, 403, 404, 405, 413, 429, 503})
_IMAGE_FORMATS: Final = ("PNG", "JPEG", "WEBP", "BMP")
_SEEDS: Final = st.integers(0, 20)

_IMAGES = st.builds(lambda seed, name: make_image(seed, image_format=name), _SEEDS, st.sampled_from(_IMAGE_FORMATS))
_NOISE = st.binary(max_size=300)

for _type in ("image/png", "image/jpeg", "image/webp", "image/bmp"):
    schemathesis.openapi.media_type(_type, st.one_of(_IMAGES, _NOISE))
schemathesis.openapi.media_type("application/octet-stream", st.one_of(_SEEDS.map(make_adapter), _IMAGES, _NOISE))


@schemathesis.hook
def filter_failure(context: HookContext, failure: Failure, case: Case[Any], response: Response) -> bool:
    """Accept the refusal of a sound request if the document states the rule that it breaks, by the answer's code.

    After many wrong keys, another one is answered 429 instead of 401. `response` is not the answer to it.
    """
    if "429 Too Many Requests" in failure.message:
        return False
    problem = _problem(response)
    if not isinstance(failure, RejectedPositiveData):
        return True
    rules: dict[str, str] = case.operation.definition.raw.get("x-rules", {})
    if problem.get("code") == "VALIDATION_ERROR":
        places = [str(field["path"]) for field in problem["errors"]]
        return not ("VALIDATION_ERROR" in rules and all(map(_has_rule, places)))
    return problem.get("code") not in rules


@schemathesis.check
def listed_status(ctx: CheckContext, response: Response, case: Case[Any]) -> bool | None:
    """Require the document to list the status of each answer; its entry `default` would cover any."""
    listed = case.operation.definition.raw["responses"]
    status = response.status_code
    if str(status) in listed or status in _UNLISTED:
        return None
    raise Failure(
        operation=case.operation.label,
        title="Status not listed",
        message=f"the document does not list {status} ({_problem(response).get('code')}); add it to the responses",
    )


@schemathesis.check
def named_problem(ctx: CheckContext, response: Response, case: Case[Any]) -> bool | None:
    """Require each error to be a problem with a status of its own and a code, and to say what is wrong."""
    if response.status_code < 400 or case.path == "/ready":
        return None
    problem = _problem(response)
    if problem.get("status") == response.status_code and problem.get("code") and problem.get("detail"):
        return None
    raise Failure(
        operation=case.operation.label,
        title="Error without a problem",
        message=f"status {response.status_code}, problem {problem}",
    )


def _has_rule(place: str) -> bool:
    """Return whether the place has a rule that no schema states."""
    # Of a replay: the config's samples are no part of the body's schema, and their paths have no name in front. Of a
    # submit: that numbers decrease. Of a key: that its name is printable.
    return place.startswith("[") or place.endswith(".sigmas") or place == "name"


def _problem(response: Response) -> dict[str, Any]:
    if response.headers.get("content-type", [""])[0] != "application/problem+json":
        return {}
    problem: dict[str, Any] = response.json()
    return problem
