"""What was used, and how podyd is."""
