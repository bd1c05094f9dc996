"""Bundled decoders of masked models."""
