"""The gateway: policies of a run behind an OpenAI-compatible HTTP API, by Ray Serve and vLLM."""
