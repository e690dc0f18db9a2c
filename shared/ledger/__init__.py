"""The job store in Redis: the only truth about jobs and items. Celery's messages only wake workers."""

from shared.ledger.acceptance import AcceptedJob, AcceptedSweep, Submission, SweepSubmission
from shared.ledger.claim import Claim
from shared.ledger.store import Ledger
from shared.ledger.sweeps import SweepView
from shared.ledger.views import ItemView, JobPage, JobView

__all__ = [
    "AcceptedJob",
    "AcceptedSweep",
    "Claim",
    "ItemView",
    "JobPage",
    "JobView",
    "Ledger",
    "Submission",
    "SweepSubmission",
    "SweepView",
]
