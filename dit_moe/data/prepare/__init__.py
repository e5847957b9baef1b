"""`python -m dit_moe.data.prepare`: pictures to a data set for training."""
