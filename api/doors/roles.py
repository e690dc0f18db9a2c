"""The role that an endpoint needs, as a dependency in its signature.

`api.doors.door` identifies the caller before the body is read. A test walks all routes and fails for one without a
role.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Annotated, Any, Final

from fastapi import Depends, Request, Security
from fastapi.security import HTTPBearer

from api.doors.caller import Caller
from shared.errors import KeyMissing, RoleMissing
from shared.keys.record import Role

#: Key of the caller in the scope of a request.
CALLER: Final = "flux2.caller"

_BEARER = HTTPBearer(auto_error=False, description="An API key, which `flux2 keys create` makes.")

#: The role that each dependency requires; None for one that lets everybody in.
ROLE_OF: dict[Callable[..., Any], Role | None] = {}


def _require(role: Role) -> Callable[..., Coroutine[Any, Any, Caller]]:
    async def check_role(request: Request, _documented: Annotated[Any, Security(_BEARER)]) -> Caller:
        caller: Caller | None = request.scope.get(CALLER)
        if caller is None:
            raise KeyMissing
        require_role(caller, role)
        return caller

    ROLE_OF[check_role] = role
    return check_role


async def _let_everybody_in(request: Request) -> Caller | None:
    caller: Caller | None = request.scope.get(CALLER)
    return caller


async def _check_metrics(request: Request, _documented: Annotated[Any, Security(_BEARER)]) -> None:
    # The switch is FLUX2_API_METRICS: the door lets nobody without a key come here unless it is `open`.
    caller: Caller | None = request.scope.get(CALLER)
    if caller is not None and not caller.may("admin") and not request.app.state.services.settings.api.metrics == "open":
        raise _role_missing(caller, "admin")


ROLE_OF[_let_everybody_in] = None
ROLE_OF[_check_metrics] = "admin"


def require_role(caller: Caller, role: Role) -> None:
    """Check a further role; raises `RoleMissing`."""
    if not caller.may(role):
        raise _role_missing(caller, role)


def listed_tenant(caller: Caller, asked: str | None) -> str | None:
    """Return the tenant whose jobs a call lists; None for those of every tenant.

    Raises:
        RoleMissing: the caller asks for the jobs of a tenant that is not its own, and is no admin.
    """
    if asked is None or caller.visible_tenant in (None, asked):
        return asked or caller.visible_tenant
    raise _role_missing(caller, "admin")


def _role_missing(caller: Caller, role: Role) -> RoleMissing:
    who = f"the key {caller.key_id}" if caller.key_id else f"the tenant {caller.tenant}"
    has = ", ".join(sorted(caller.roles)) or "none"
    return RoleMissing(f"this call needs the role {role!r}, and {who} has {has}; ask the operator for another key")


Submitter = Annotated[Caller, Depends(_require("submit"))]
Reader = Annotated[Caller, Depends(_require("read"))]
Admin = Annotated[Caller, Depends(_require("admin"))]
#: Lets in the readers of the metrics of all tenants.
MetricsReader = Annotated[None, Depends(_check_metrics)]
#: None if the caller has not said who it is.
Anybody = Annotated[Caller | None, Depends(_let_everybody_in)]
