"""Reads an AI Toolkit training config and plans the jobs that reproduce its previews."""
