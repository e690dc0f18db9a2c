"""The HTTP API: it validates jobs, stores them in the ledger and reads them back. It never touches a tensor."""
