"""The networks: the trunk of blocks, the ends of images, parameters as a flat dictionary."""
