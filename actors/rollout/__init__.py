"""The rollout pool: vLLM engines, their health, and the queue of requests."""
