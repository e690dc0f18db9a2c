"""From a prompt, a seed and a size to pixels."""
