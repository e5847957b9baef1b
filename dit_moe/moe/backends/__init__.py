"""How the assignments of a mixture are computed, a file for each way."""
