"""What the API and the workers agree on; light to import."""
