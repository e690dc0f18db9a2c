"""Brings an item from the ledger to its end: wake-up, claim, lease, rendering, storing, commit. Imports no torch."""
