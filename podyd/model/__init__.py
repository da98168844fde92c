"""The types of a pod, a member, a token and a choice of cards, and the names of instances."""
