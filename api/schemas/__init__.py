"""The HTTP bodies as pydantic models, one module for each subject; a job's request body is `shared.request`.

Their docstrings and descriptions are the reference that `/docs` shows.
"""
