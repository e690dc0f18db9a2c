"""The command `flux2 verify`: compares this project's rendering with numbers that AI Toolkit's own code produced."""
