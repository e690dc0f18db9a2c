"""Owns the GPU: keeps a warm FLUX.2 pipeline and renders the items that the ledger hands out. Serves no HTTP."""
