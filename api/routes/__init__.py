"""One module for each resource; each endpoint is a short function whose signature lists what it needs.

Endpoints' docstrings, descriptions and summaries are the reference that `/docs` shows.
"""
