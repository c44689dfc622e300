"""Losses and training loops, free of Ray."""
