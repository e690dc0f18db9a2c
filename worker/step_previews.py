"""Previews of images between steps, as protocols: what a renderer makes, and who takes it."""

from __future__ import annotations

from typing import Protocol

from PIL import Image


class StepPreview(Protocol):
    """A small picture of an image after one of its steps, which may still be on its way from the device."""

    @property
    def is_ready(self) -> bool:
        """Whether it has arrived; any thread may ask, and none waits."""

    def image(self) -> Image.Image:
        """Return it, once it is ready."""


class PreviewSink(Protocol):
    """Takes the previews of one item, from the thread that renders."""

    def is_due(self, step: int, steps: int) -> bool:
        """Whether somebody wants a preview of this step; it is not made otherwise."""

    def offer(self, preview: StepPreview, *, step: int, steps: int) -> None:
        """Take a preview; it replaces one that was not sent yet."""
