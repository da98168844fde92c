"""GPUs: the inventory of cards, the scheduler and its leases and queue, and who uses each card."""
