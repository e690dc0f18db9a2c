"""A thread that finishes the jobs of a served API as workers do."""

import io
import threading

from PIL import Image

from shared.job import FEATURES, ItemError, pools

_POOLS = pools("flux2", ["exact"], FEATURES)


class Renderer(threading.Thread):
    """Finishes queued items; an item whose prompt contains "fail" fails."""

    def __init__(self, api, finish):
        super().__init__()
        self._api = api
        self._finish = finish
        self._stopped = threading.Event()

    def run(self):
        while not self._stopped.is_set():
            claim = self._api.ledger.claim_next(_POOLS, slot="test", boot="test", warm="base")
            if claim is None:
                self._stopped.wait(0.02)
            elif "fail" in claim.spec.prompt:
                self._api.ledger.commit(claim, ItemError(code="run_failed", message="it broke", retryable=False))
            else:
                file = io.BytesIO()
                Image.new("RGB", (64, 64), (claim.spec.seed % 256, claim.index, 0)).save(file, format="PNG")
                self._finish(self._api, claim, file.getvalue())

    def stop(self):
        self._stopped.set()
        self.join()
