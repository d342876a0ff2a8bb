"""Coordinates: the one rounding rule, box geometry and the bin <-> token table. Plain PyTorch and NumPy."""
