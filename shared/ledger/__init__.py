"""The job store in Redis: the only truth about jobs and items. Celery messages are wake-ups beside it."""

from shared.ledger.claim import Accepted, Claim
from shared.ledger.store import Ledger
from shared.ledger.views import ItemView, JobPage, JobView

__all__ = ["Accepted", "Claim", "ItemView", "JobPage", "JobView", "Ledger"]
