"""Qwen-VL behind one forward, the new-token rows, and the decode loop."""
