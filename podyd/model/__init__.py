"""What a pod is, and how it is named."""
