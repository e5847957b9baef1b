"""One HTML page about a run, complete in itself."""
