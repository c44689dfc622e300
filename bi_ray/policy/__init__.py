"""Policies: checkpoints, prompts, packed rows, log-probabilities, published weights."""
