"""Loading, keeping and changing the model that renders."""
