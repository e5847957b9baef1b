"""Pairs of images: one network draws either from the other, or both (UniCon, Li et al. 2024)."""
