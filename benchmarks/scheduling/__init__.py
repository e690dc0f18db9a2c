"""How the queue schedules: the real ledger and simulated slots on a virtual clock, next to first in, first out."""
