"""Judges samples of handwritten digits beside real held-out digits."""
