"""Adapters: reading their files and folding them into weights."""
