"""Measure a full-size FLUX.2 on one device: AI Toolkit's classes, diffusers', ours, and ours compiled.

All run over the same weights, which are random, so no checkpoint is needed. How a picture looks is measured elsewhere,
and the queue around the renderer by `benchmarks.queue`.
"""
