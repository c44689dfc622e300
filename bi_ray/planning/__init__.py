"""A plan on paper: memory, traffic and time of a run's RL steps, from its configuration and a kind
of machine.
"""
