"""What processes count for `GET /metrics`: the metrics, the tally of a process, and its batches for the ledger."""
