"""Turns one item into one image: prompt encoding, latents, sigmas, denoising, decoding, and the engines."""
