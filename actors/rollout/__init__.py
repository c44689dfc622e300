"""The rollout pool: vLLM engines, their health, and the requests that wait for them."""
