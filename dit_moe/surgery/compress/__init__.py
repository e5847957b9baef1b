"""Smaller models from trained ones: steps, chains of them, and what they did."""
