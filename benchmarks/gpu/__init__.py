"""Measure a full-size FLUX.2 on one device: AI Toolkit's classes, diffusers' pipeline, ours, and ours compiled.

All engines run over the same random weights, so no checkpoint is needed. `benchmarks.score_tiny` judges pictures, and
`benchmarks.queue` measures the queue around the renderer.
"""
