"""What may happen to a pod."""
