"""Sample -> prompt and answer ids with every position known; emitted tokens -> records."""

from coordvlm.sequence.target import index_target

__all__ = ["index_target"]
