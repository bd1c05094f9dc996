"""The engine: what is read from a model, and how."""
