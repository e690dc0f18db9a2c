"""GET /v1/caller: who the API takes the caller for."""

from __future__ import annotations

from fastapi import APIRouter

from api.doors.roles import Reader
from api.schemas.caller import CallerLine
from shared.keys.record import ROLES

router = APIRouter(prefix="/v1", tags=["usage"])


@router.get("/caller", summary="Describe the caller")
async def get_caller(caller: Reader) -> CallerLine:
    """Return the tenant, the roles and the id of the key with which this call came."""
    return CallerLine(
        tenant=caller.tenant,
        roles=[role for role in ROLES if role in caller.roles],
        key_id=caller.key_id or None,
        is_anonymous=caller.is_anonymous,
    )
