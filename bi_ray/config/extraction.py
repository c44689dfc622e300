"""Options of the language model that extracts graphs from free text."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from bi_ray.config.base import Config, NotNegative, Positive, Seconds


class ExtractConfig(Config):
    """The language model that reads graphs out of free text, at an OpenAI-compatible endpoint."""

    endpoint: str = "https://api.openai.com/v1"
    """Base URL of the endpoint."""

    model: str
    """The endpoint's name of the model."""

    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the API key. Empty: the endpoint needs none."""

    concurrency: Positive = 16
    """Maximum number of requests in flight at a time."""

    retries: NotNegative = 5
    """Retries of one row after rate limits, server errors, timeouts and broken JSON."""

    timeout_s: Seconds = 120
    """Deadline of one request."""

    max_tokens: Positive = 4096
    """Longest answer; one that is cut off is rejected."""

    token_limit_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """The endpoint's name of that limit."""

    temperature: Annotated[float, Field(ge=0)] | None = 0.0
    """Sampling temperature. null: it is not sent, for models that refuse it."""
