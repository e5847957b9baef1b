"""What computes the tokens of a mixture: banks of weights, and experts that need none."""
