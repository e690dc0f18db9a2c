"""Writes an adapter in the layout of another tool, with the same update of every layer."""
