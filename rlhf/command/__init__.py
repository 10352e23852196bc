"""From a command line to a checked config, and from a file to a file."""
