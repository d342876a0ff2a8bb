"""coordvlm: teach Qwen vision-language models to say where things are, and show honestly which way of teaching works."""

__version__ = "0.1.0"
