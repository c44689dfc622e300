"""What the driver makes of rollouts: queries, groups, advantages, batches. Free of torch."""
