"""The figures of `GET /metrics`, read from the ledger at each scrape; docs/reference/metrics.md lists them."""
