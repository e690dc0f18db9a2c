"""Compare this project's rendering with numbers that AI Toolkit's own code produced: the command `flux2 verify`."""
