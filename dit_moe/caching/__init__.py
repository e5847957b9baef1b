"""Evaluations that are not computed: which, and what stands in for them."""
