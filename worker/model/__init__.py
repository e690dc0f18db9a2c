"""FLUX.2's modules and how they run: precision, placement, layer streaming, compiling, text encoder."""
