"""Proves the ledger's promises under fire: real processes, a seeded nemesis, a complete history, an offline checker."""
