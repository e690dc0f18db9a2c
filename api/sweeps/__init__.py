"""Sweeps: one call that renders every combination of adapters and parameters."""
