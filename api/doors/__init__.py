"""The doors of the API: who calls, from where, and what they may do."""
