"""Data sources, the checks they pass, and the loader that knows accumulation windows."""
