"""Owns the GPU: keeps a warm FLUX.2 pipeline and renders what the ledger hands out. Serves no HTTP."""
