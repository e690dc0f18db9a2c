"""Checkpoint files: where they are, their tensors' names, and pinned and parallel reading."""
