"""Behavior injection: from problems to demonstrations."""
