"""`podyd migrate`: a lab's pods from LXD to Incus on the same host."""
