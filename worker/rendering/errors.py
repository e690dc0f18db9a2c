"""Errors between the processes of a group of devices; they never leave it."""


class Disconnected(Exception):
    """The other process has ended."""
