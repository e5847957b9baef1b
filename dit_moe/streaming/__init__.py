"""Models larger than memory: their experts lie in a file, of which layers are read as they are
needed, ahead of the network that computes with them."""
