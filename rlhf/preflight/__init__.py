"""What can be told before a run begins."""
