"""Sample -> prompt and answer ids with every position known; emitted tokens -> records."""
