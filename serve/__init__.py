"""The gateway: policies of a run behind an OpenAI-compatible HTTP interface, by Ray Serve and vLLM."""
