"""Clients of the API: they submit with idempotency keys, poll, cancel some jobs, and record every answer."""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Mapping
from typing import Any

import httpx2

from chaos.fleet import Fleet

ENDED = frozenset({"succeeded", "failed", "canceled"})
_TIMEOUT_S = 5.0
_POLL_S = 0.25
_REPEAT_S = 0.1


class Load:
    """Submits jobs from one thread while another polls them all.

    Attributes:
        jobs: accepted jobs, each with its Idempotency-Key.
        ended: jobs that have ended according to a poll.
        statuses: answers by status code; 0 stands for none.
        key: API key of the polls and cancels, and of submits that name no other.
    """

    def __init__(self, fleet: Fleet, rng: random.Random) -> None:
        self.jobs: dict[str, str] = {}
        self.ended: set[str] = set()
        self.statuses: Counter[int] = Counter()
        self.key = ""
        self._fleet = fleet
        self._rng = rng
        self._stopped = threading.Event()
        self._seen: dict[str, str] = {}
        self._http = httpx2.Client(base_url=fleet.url, timeout=_TIMEOUT_S)
        self._poller = threading.Thread(target=self._poll_until_stopped, name="chaos-poller", daemon=True)

    def __enter__(self) -> Load:
        self._poller.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._poller.join()
        self._http.close()

    def submit(self, prompts: list[dict[str, Any]], *, twice: bool = False, **fields: Any) -> str:
        """Submit with one Idempotency-Key until the API answers, as a careful client does; return the job's id.

        Args:
            fields: of the request, beyond its model, adapters and prompts.
        """
        job, code = self.attempt(prompts, twice=twice, **fields)
        if code:
            raise ValueError(f"the API refused a valid job: {code}")
        return job

    def attempt(
        self, prompts: list[dict[str, Any]], *, twice: bool = False, key: str = "", name: str = "", **fields: Any
    ) -> tuple[str, str]:
        """Submit as `submit` does; return the job's id, or an empty one and the code of the refusal.

        Args:
            key: API key of the caller.
            name: Idempotency-Key; a new one if empty.
        """
        name = name or self.new_name()
        body = {"model": "flux2", "loras": [], "prompts": prompts, **fields}
        self._fleet.history.add("submit", key=name, items=len(prompts))
        is_unsure = False
        while True:
            answer = self._request("POST", "/v1/inference", key=key, json=body, headers={"Idempotency-Key": name})
            if answer is not None and answer.status_code == httpx2.codes.ACCEPTED:
                job = str(answer.json()["request_id"])
                self._fleet.history.add("accepted", key=name, job=job, items=len(prompts))
                self.jobs[job] = name
                # The second submit is a repeat, which must give the same job.
                if not twice:
                    return job, ""
                twice = False
            elif answer is not None and answer.status_code < httpx2.codes.INTERNAL_SERVER_ERROR:
                code = str(answer.json()["code"])
                self._fleet.history.add("denied", key=name, status=answer.status_code, code=code, unsure=is_unsure)
                return "", code
            else:
                # The job may be stored, although no answer says so.
                is_unsure = True
            self._stopped.wait(_REPEAT_S if answer is None or answer.is_error else 0)

    def new_name(self) -> str:
        """Return an Idempotency-Key that no other call has."""
        return uuid.UUID(int=self._rng.getrandbits(128)).hex

    def submit_invalid(self) -> None:
        """Submit a request that the API must refuse, and that must leave no trace."""
        body = {"model": "flux2", "loras": [], "prompts": [{"prompt": "x", "width": 3}]}
        answer = self._request("POST", "/v1/inference", json=body, headers={"Idempotency-Key": uuid.uuid4().hex})
        self._fleet.history.add("refused", status=answer.status_code if answer else 0)

    def cancel(self, job: str) -> None:
        """Cancel until the API answers; the event is `acknowledged` if the job had not ended before."""
        while not self._stopped.is_set():
            answer = self._request("POST", f"/v1/requests/{job}/cancel")
            if answer is not None and answer.status_code == httpx2.codes.OK:
                state = answer.json()
                self._fleet.history.add(
                    "cancel",
                    job=job,
                    status=state["status"],
                    acknowledged=state["status"] not in ("succeeded", "failed"),
                )
                return
            self._stopped.wait(_REPEAT_S)

    def status(self, job: str) -> dict[str, Any] | None:
        """Request a job's status once; return None without an answer or after an error."""
        answer = self._request("GET", f"/v1/requests/{job}/status")
        return answer.json() if answer is not None and answer.status_code == httpx2.codes.OK else None

    def wait(self, idle_s: float) -> bool:
        """Wait until every job has ended according to the polls; return False if none has ended for `idle_s`."""
        ended, deadline = len(self.ended), time.monotonic() + idle_s
        while len(self.ended) < len(self.jobs):
            if len(self.ended) > ended:
                ended, deadline = len(self.ended), time.monotonic() + idle_s
            if time.monotonic() > deadline:
                return False
            self._stopped.wait(_POLL_S / 5)
        return True

    def _request(
        self, method: str, path: str, *, key: str = "", headers: Mapping[str, str] | None = None, **options: Any
    ) -> httpx2.Response | None:
        """Send one request; return None without an answer: the request may or may not have taken effect."""
        login = {"Authorization": f"Bearer {key or self.key}"} if key or self.key else {}
        try:
            answer = self._http.request(method, path, headers={**(headers or {}), **login}, **options)
        except httpx2.TransportError:
            self.statuses[0] += 1
            return None
        self.statuses[answer.status_code] += 1
        return answer

    def _poll_until_stopped(self) -> None:
        while not self._stopped.wait(_POLL_S):
            for job in [job for job in list(self.jobs) if job not in self.ended]:
                self._poll(job)
                if self._stopped.is_set():
                    return

    def _poll(self, job: str) -> None:
        status = self.status(job)
        if status is None:
            return
        states = [status["status"], *(item["status"] for item in status["items"])]
        if (seen := " ".join(states)) != self._seen.get(job):
            self._seen[job] = seen
            self._fleet.history.add("seen", job=job, states=states)
        if status["status"] in ENDED:
            self.ended.add(job)


def prompt(
    rng: random.Random, *, steps: tuple[int, int] = (5, 15), text: str = "a cat", **fields: Any
) -> dict[str, Any]:
    """Return the prompt of one item, with a random seed, so that its picture differs from all others."""
    return {
        "prompt": text,
        "width": 64,
        "height": 64,
        "seed": rng.getrandbits(40),
        "sample_steps": rng.randint(*steps),
        **fields,
    }
