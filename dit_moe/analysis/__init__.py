"""What the experts of a trained model do: on which positions, times and classes they are chosen."""
