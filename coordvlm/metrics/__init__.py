"""What ranks runs: metrics on decoded predictions at original resolution."""
