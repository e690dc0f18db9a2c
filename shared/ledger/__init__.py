"""The job store in Redis: the only truth about jobs and items. Celery's messages only wake workers."""

from shared.ledger.acceptance import AcceptedJob, Submission
from shared.ledger.claim import Claim
from shared.ledger.store import Ledger
from shared.ledger.views import ItemView, JobPage, JobView

__all__ = ["AcceptedJob", "Claim", "ItemView", "JobPage", "JobView", "Ledger", "Submission"]
