"""A run on disk: layout, directory and lock, mirror at a URI, checkpoints, metrics, status."""
