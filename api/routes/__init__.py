"""The endpoints, one module for each resource; their signatures list the services that they need.

`/docs` shows the docstrings, descriptions and summaries of endpoints as the reference.
"""
