"""Measure the encoding of a prompt of 512 random tokens."""

from __future__ import annotations

from benchmarks.gpu.session import Session


def measure_prompt(session: Session) -> None:
    """Report the median time of an encoding, and where the text encoder resides."""
    step_ms, clock = session.step_ms(), session.clock
    clock.reset_peak()
    median_s = clock.median_s(lambda: session.encode_random_prompt(3), session.plan.repeat)
    place = session.components.placement.text_encoder
    session.add_row("prompt encode", median_s * 1000, step_ms=step_ms, peak_gb=clock.peak_gb(), text_encoder=place)
