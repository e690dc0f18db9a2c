"""The doors of the API: the callers, where they come from, and what their keys allow."""
