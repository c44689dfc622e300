"""bi_ray: will reinforcement learning help this checkpoint, and if not, what should its SFT data look like?"""
