"""One file per stage, each with KIND, num_shards and run (see rlhf.run.job)."""
