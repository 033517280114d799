"""What can place a call."""
