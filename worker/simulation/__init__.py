"""Slots that claim, store and commit like others, but draw labelled pictures in a set time instead of rendering."""

#: What a simulated slot reports as its device, and as everything else that only a renderer has.
SIMULATED = "simulated"
