"""What a pod, a member, a token and a choice of cards are, and how a pod is named."""
