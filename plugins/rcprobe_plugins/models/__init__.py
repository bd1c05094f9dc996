"""Model families, one a file, and the blocks that the tiny ones are built of."""
