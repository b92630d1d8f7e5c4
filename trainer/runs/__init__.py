"""A run's folder: its checkpoints, its figures, its exports, and what it says of itself."""
