"""`podyd doctor`: what is wrong on this machine, and what to type. It changes nothing."""
