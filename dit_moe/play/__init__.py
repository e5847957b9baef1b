"""A page in the browser on which a run is played with."""
