"""podyd.yaml: its schema, its loader, and the configuration in force."""
