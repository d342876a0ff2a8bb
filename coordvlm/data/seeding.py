"""Random numbers as a pure function of a key: what data and sequences share, under the name that sources use."""

from coordvlm.utils.seeding import keyed_generator

__all__ = ["keyed_generator"]
