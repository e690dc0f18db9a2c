"""Takes items from the ledger to their end: wake, claim, lease, hand to rendering, store, commit. Imports no torch."""
