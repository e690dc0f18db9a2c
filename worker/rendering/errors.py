"""Errors between the processes of a group of devices; they never leave it."""


class Disconnected(Exception):
    """The other process has ended."""


class GroupOutOfMemory(Exception):
    """A device of the group has too little memory for its part; others may wait for it until their process ends."""
