"""Observers that send what a run measures to a tracker; each is a plugin of its own, off until it is named."""
