"""The driver: the order of events in a step of RL, in an evaluation and in readiness."""
