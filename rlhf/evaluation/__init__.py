"""Yardsticks: arithmetic over finished artifacts, without torch."""
