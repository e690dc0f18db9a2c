"""Processes an item from wake-up to commit: claim, lease, rendering, storing. Imports no torch."""
