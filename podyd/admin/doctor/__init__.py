"""`podyd doctor`: problems of this machine, with the command for each. It changes nothing."""
