"""Streams of server-sent events: what changes of jobs, told to those who watch them."""
