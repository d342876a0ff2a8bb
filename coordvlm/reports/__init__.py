"""Tables, plots, overlays and the self-contained HTML page of a run."""
