"""/v1/keys: make, list and revoke API keys, as `flux2 keys` does for people who reach Redis."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Annotated, Final

from fastapi import APIRouter, Path, Query, Request

from api.deps import JSON_BODY, Services, ServicesDep
from api.doors.caller import Caller
from api.doors.roles import Admin
from api.openapi import BODY_RULES, link, with_rules
from api.schemas.keys import KeyLine, KeyList, MadeKey, NewKey
from api.schemas.problems import Problem
from shared.errors import FirstKeyRefused, InvalidRequest, KeyInUse, KeyNotFound
from shared.keys.issue import issue_key
from shared.keys.record import KeyRecord
from shared.network.callers import is_loopback

logger = logging.getLogger("flux2.api.keys")

router = APIRouter(prefix="/v1", tags=["keys"])

# A proxy on this host brings calls from others to an API on loopback, and adds one of them.
_PROXY_HEADERS: Final = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip")

_RULES = {
    "VALIDATION_ERROR": "`name` is printable; `limits` names models of `GET /v1/models` and their engines.",
    "INVALID_REQUEST": "The first key has the role `admin`.",
    "FIRST_KEY_REFUSED": "The first key is made by a call on loopback, not through a proxy.",
}
_LINKS = {
    "next": link("GET", "/v1/keys", "Read the next page.", cursor="$response.body#/next_cursor"),
}


@router.get(
    "/keys",
    summary="List the API keys",
    responses={200: {"links": _LINKS}, 422: {"model": Problem, "description": "A parameter is invalid."}},
)
def list_keys(
    services: ServicesDep,
    _caller: Admin,
    limit: Annotated[int, Query(ge=1, le=200, description="Number of keys on a page.")] = 100,
    cursor: Annotated[str, Query(pattern="^[0-9]{1,9}$", description="`next_cursor` of the previous page.")] = "0",
) -> KeyList:
    """List the keys of every tenant, the oldest first, also those that were revoked or have expired."""
    start, now_ms = int(cursor), services.ledger.now_ms()
    page = services.ledger.api_keys.page(start, limit + 1)
    has_more = len(page) > limit
    return KeyList(
        data=[_line(key_id, fields, now_ms=now_ms) for key_id, fields in page[:limit]],
        has_more=has_more,
        next_cursor=str(start + limit) if has_more else None,
    )


@router.post(
    "/keys",
    status_code=HTTPStatus.CREATED,
    summary="Make an API key",
    responses={
        400: {"model": Problem, "description": "The body is not JSON, or the first key lacks the role `admin`."},
        413: {"model": Problem, "description": "The body is too large."},
        415: {"model": Problem, "description": "The body is not declared as JSON."},
        422: {"model": Problem, "description": "A field is invalid."},
    },
    openapi_extra=with_rules(_RULES, BODY_RULES),
    dependencies=[JSON_BODY],
)
def make_key(body: NewKey, request: Request, services: ServicesDep, caller: Admin) -> MadeKey:
    """Make a key and return it with its secret, this once: only a hash of it is stored.

    From the first key on, every call needs one. While there are no keys, an API on loopback lets any caller make the
    first, except through a proxy; it must have the role `admin`: only such a key can make others here.
    """
    if caller.is_anonymous:
        _check_first(body, request, services)
    text, record = issue_key(
        services.ledger,
        name=body.name,
        tenant=body.tenant,
        roles=frozenset(body.roles),
        limits=body.limits,
        days=body.expires_in_days,
        must_be_first=caller.is_anonymous,
    )
    _log("a key was made", caller, record.key_id)
    line = KeyLine.of(record, now_ms=record.created_ms, limits=record.limits)
    return MadeKey(key=str(text), **line.model_dump())


def _check_first(body: NewKey, request: Request, services: Services) -> None:
    is_proxied = any(name in request.headers for name in _PROXY_HEADERS)
    if is_proxied or not is_loopback(services.settings.api.host):
        raise FirstKeyRefused
    if "admin" not in body.roles:
        raise InvalidRequest(
            "the first key needs the role 'admin': from then on every call needs a key, and only one with this role "
            "can make others here",
            field="roles",
        )


@router.delete(
    "/keys/{key_id}",
    summary="Revoke an API key",
    responses={
        404: {"model": Problem, "description": "No key has this id."},
        409: {"model": Problem, "description": "The call comes with this key."},
        422: {"model": Problem, "description": "The id is longer than any."},
    },
)
def revoke_key(
    services: ServicesDep,
    caller: Admin,
    key_id: Annotated[str, Path(description="Id of a key: the text between the two `_` of the key.", max_length=100)],
) -> KeyLine:
    """Revoke a key for good. Every API process refuses it within three seconds; its jobs go on."""
    if key_id == caller.key_id:
        raise KeyInUse(
            f"this call comes with the key {key_id} itself; revoke it with another key that has the role 'admin', or "
            "with `flux2 keys revoke` on the host of the API"
        )
    if not services.ledger.api_keys.revoke(key_id):
        raise KeyNotFound(f"no key has the id {key_id!r}")
    _log("a key was revoked", caller, key_id)
    fields, now_ms = services.ledger.api_keys.read(key_id)
    return _line(key_id, fields, now_ms=now_ms)


def _line(key_id: str, fields: Mapping[str, str], *, now_ms: int) -> KeyLine:
    try:
        record = KeyRecord.read(key_id, fields)
        return KeyLine.of(record, now_ms=now_ms, limits=record.limits)
    except ValueError:
        # A limit of a later version; the rest of such a key can be read.
        return KeyLine.of(KeyRecord.read(key_id, {**fields, "limits": "{}"}), now_ms=now_ms, limits=None)


def _log(event: str, caller: Caller, key_id: str) -> None:
    logger.info(event, extra={"key": key_id, "by": caller.key_id or "nobody"})
