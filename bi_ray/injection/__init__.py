"""Behaviour injection: from problems to demonstrations."""
