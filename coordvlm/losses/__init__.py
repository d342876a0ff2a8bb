"""Loss terms: unreduced maths on supervised rows. Pure tensor code."""
