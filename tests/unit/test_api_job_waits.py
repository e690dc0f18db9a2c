"""The calls that may wait for jobs at a time; a fake stands for the ledger."""

import asyncio

from api.job_waits import PLACES, PLACES_OF_TENANT, JobWaits, places_for


class Ledger:
    def __init__(self):
        self.ended = set()

    def find_ended(self, jobs):
        return self.ended & set(jobs)


async def _stay():
    return False


def test_one_tenant_leaves_places_for_others_and_gives_its_own_back():
    async def run():
        ledger = Ledger()
        waits = JobWaits(ledger)

        def wait(job, tenant):
            return asyncio.create_task(waits.wait(job, tenant=tenant, places=50, timeout_s=9, has_left=_stay))

        calls = [wait(f"a{n}", "a") for n in range(5)]
        await asyncio.sleep(0)
        assert not waits.has_room("a", places=1)
        assert waits.has_room("b", places=PLACES_OF_TENANT)
        calls += [wait(f"b{n}", "b") for n in range(5)]
        await asyncio.sleep(0)
        assert not waits.has_room("c", places=1)

        ledger.ended = {f"{tenant}{n}" for tenant in "ab" for n in range(5)}
        assert all(await asyncio.gather(*calls))
        assert all(waits.has_room(tenant, places=PLACES_OF_TENANT) for tenant in "abc")

    asyncio.run(run())


def test_a_large_body_takes_more_places():
    assert places_for(200) == 1
    # As many as leave the process a hundred megabytes of bodies.
    assert PLACES // places_for(4 * 2**20) * 4 <= 125
