"""Tests the ledger's promises under faults: real processes, a seeded nemesis, a full history, an offline checker."""
