"""A run folder: artifacts, the plan, the commit, the locks, what comes from outside."""
