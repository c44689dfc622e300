"""The driver: what happens in a step of RL, in an evaluation and in readiness, and in which order."""
