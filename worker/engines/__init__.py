"""Whose code turns noise into an image: this project's, or AI Toolkit's own from a checkout."""
