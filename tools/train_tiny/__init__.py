"""Trains the embedded demonstration model; README.md says how."""
