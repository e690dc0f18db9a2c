"""The layouts that an adapter can be converted to. This module imports no torch, so that `flux2 --help` stays fast."""

from __future__ import annotations

from enum import StrEnum


class TargetLayout(StrEnum):
    """The layout of the tool that reads the converted file."""

    AI_TOOLKIT = "ai-toolkit"
    DIFFUSERS = "diffusers"
