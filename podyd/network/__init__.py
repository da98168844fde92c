"""At which address a pod is, and which ports of the host lead to it."""
