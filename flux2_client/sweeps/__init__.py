"""Sweeps on this side: the request, the checkpoints of a training run, and the files that show the images."""
