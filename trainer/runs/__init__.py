"""A run's folder holds its checkpoints, its figures, its exports, and what it says of itself."""
