"""Calls that may hang or die, made in a process of their own."""
