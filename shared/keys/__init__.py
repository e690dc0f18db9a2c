"""API keys: their text, their record, and what they allow."""
