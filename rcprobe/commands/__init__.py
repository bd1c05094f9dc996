"""The commands of the command line. Nothing heavy is imported until one needs it."""
