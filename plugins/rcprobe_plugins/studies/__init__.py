"""Studies: whole experiments that arrive as commands."""
