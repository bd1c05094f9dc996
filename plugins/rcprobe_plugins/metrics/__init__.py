"""Bundled metrics: the three signatures, the outcome, and accuracy."""
