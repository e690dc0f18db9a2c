"""Hold the product to numbers that AI Toolkit's own code gave: the command `flux2 verify`."""
