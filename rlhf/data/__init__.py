"""Files of rows: prompts, preferences, shards."""
