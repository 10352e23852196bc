"""What each stage costs beside its peers; equality is proved before any time is taken."""
