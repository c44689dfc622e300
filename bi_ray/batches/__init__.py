"""What the driver makes of rollouts, free of torch: queries, groups, advantages, selection,
batches.
"""
