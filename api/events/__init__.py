"""Streams of server-sent events about jobs and their changes."""
