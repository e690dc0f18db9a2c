"""The HTTP bodies as pydantic models, one module for each subject; a job's request body is in `shared.request`.

`/docs` shows their docstrings and descriptions as the reference.
"""
