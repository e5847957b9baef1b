"""What a run is on disk: its state, its checkpoints, and how they become models."""
