"""LXD: the only place that knows its paths, its answers and what goes wrong with it."""
