"""One worker process per GPU of a host, started and supervised by one command."""
