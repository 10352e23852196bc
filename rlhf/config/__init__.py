"""The schema of every experiment, the only home of defaults, and what values may be."""
