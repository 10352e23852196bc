"""Judges with one interface."""
