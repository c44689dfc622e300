"""What a reward loses for the length of its response."""

from __future__ import annotations

from bi_ray.config.algorithms import ShapingConfig


def overlong_penalty(tokens: int, max_tokens: int, config: ShapingConfig) -> float:
    """DAPO's soft overlong punishment (Eq. 13 of arXiv:2503.14476) as a number of at least 0.

    0 up to the buffer of ``overlong_buffer_share`` * ``max_tokens`` before the limit, then linear,
    and ``overlong_penalty`` at the limit.
    """
    buffer = config.overlong_buffer_share * max_tokens
    return config.overlong_penalty * min(1.0, max(0.0, tokens - (max_tokens - buffer)) / buffer)


def length_penalty(tokens: int, max_tokens: int, right: bool, config: ShapingConfig) -> float:
    """``length_penalty`` times the share of the limit that a right response used.

    Wrong responses pay nothing: a policy that is wrong should not learn to be short.
    """
    if not right:
        return 0.0
    return config.length_penalty * min(1.0, tokens / max_tokens)
