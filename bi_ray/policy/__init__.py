"""What learning and readiness both stand on: tokens, log-probabilities, advantages, packing,
checkpoints.
"""
