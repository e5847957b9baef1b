"""From parameters to parameters of another network."""
