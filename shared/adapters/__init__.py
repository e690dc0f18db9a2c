"""Adapter files: locating, identifying and validating them from their headers alone, without reading a tensor."""
