"""The foveated video model: one token per frame, and a query that decides where each frame is read."""
