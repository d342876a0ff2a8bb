"""Cross-cutting training habits."""
