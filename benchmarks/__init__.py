"""Measurements behind the numbers in the documentation; each module runs with `python -m`."""
