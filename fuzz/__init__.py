"""Fuzzing of the HTTP API: schemathesis sends what the API's document allows, and what it forbids, to a live API.

`fuzz.target` starts the API on real Redis and S3, with keys; `fuzz.callers` runs schemathesis as each caller;
`fuzz.hooks` adds to it what it cannot know by itself. `make fuzz` runs all of it, and the hypothesis tests of headers,
paths, URLs and configs with many more examples.
"""
