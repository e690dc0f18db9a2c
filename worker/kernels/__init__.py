"""Every Triton kernel with its wrapper, and a check whether this host can build them."""
