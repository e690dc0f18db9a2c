"""Places for calls that hold memory for as long as their callers take, of which one tenant gets a part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class TenantPlaces:
    """The places of this process, which the event loop alone gives out.

    Args:
        count: of all tenants.
        count_of_tenant: of one tenant.
        refusal: makes the error for a call without a place.
    """

    def __init__(self, count: int, count_of_tenant: int, *, refusal: Callable[[], Exception]) -> None:
        self._count = count
        self._count_of_tenant = count_of_tenant
        self._refusal = refusal
        self._taken: Counter[str] = Counter()

    @contextmanager
    def take(self, tenant: str) -> Iterator[None]:
        """Hold a place during the block; raises the refusal if none is free."""
        if self._taken.total() >= self._count or self._taken[tenant] >= self._count_of_tenant:
            raise self._refusal()
        self._taken[tenant] += 1
        try:
            yield
        finally:
            self._taken[tenant] -= 1
            if not self._taken[tenant]:
                del self._taken[tenant]
