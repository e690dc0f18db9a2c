"""Batch files: JSON Lines of requests in, JSON Lines of answers out, in the shape of OpenAI's batch API."""
