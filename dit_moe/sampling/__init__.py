"""From a run to images."""
