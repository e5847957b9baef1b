"""What a run will need: FLOPs, memory and time, before it starts."""
