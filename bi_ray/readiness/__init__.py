"""RL-readiness of a policy: rollout accuracy and data co-influence, from verified rollouts."""
