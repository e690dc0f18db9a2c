"""Reads adapters, merges them or runs them unmerged, and swaps them: everything that touches adapted weights."""
