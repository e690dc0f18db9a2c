"""Connections to hosts that other people name: only public addresses, within a time and a size."""
