"""Train the embedded demonstration model from drawn pictures; README.md explains how."""
