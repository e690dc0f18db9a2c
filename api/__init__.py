"""HTTP in, HTTP out: validates jobs into the ledger and reads them back. Never touches a tensor."""
