"""What is inside the container images: locks with hashes, an inventory with licences, and an audit."""
