"""The synthetic world of the quickstart: verifiable tasks, a tokenizer, a tiny model, data."""
