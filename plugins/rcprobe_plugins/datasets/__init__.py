"""Datasets, one a file, and the tokenizer that reads the controlled ones character by character."""
