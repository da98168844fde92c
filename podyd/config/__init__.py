"""podyd.yaml: what may stand in it, how it is read, and what is in force."""
