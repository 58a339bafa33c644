"""What the user chooses."""
