"""Statistics over evaluations: bootstrap, paired tests."""
