"""What people look at of a run: read from its folder, without a lock and without what it was made of."""
