"""The HTTP client that people import, and the commands that use it."""
