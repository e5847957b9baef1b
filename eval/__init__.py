"""Judges sets of images. It reads files and knows nothing of the model that made them."""
