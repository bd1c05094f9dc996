"""Positional encodings of the tiny models, one a file."""
