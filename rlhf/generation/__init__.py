"""Sampling engines with one interface."""
