"""Adapter files as they lie on disk: where, which, and what is inside, without opening a tensor."""
