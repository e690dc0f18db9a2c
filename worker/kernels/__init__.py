"""Every Triton kernel with its wrapper, and whether this host can build them."""
