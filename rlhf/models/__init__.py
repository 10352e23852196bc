"""Model folders, chat templates and batches of token ids."""
