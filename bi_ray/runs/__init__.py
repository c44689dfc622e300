"""A run on disk: its layout, directory and lock, mirror at a URI, checkpoints, metrics and status."""
