"""How stage processes start."""
