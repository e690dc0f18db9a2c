"""Signatures in image files, by the rules of C2PA: workers write them, and everybody who has a file can check them."""
