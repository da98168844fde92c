"""What an admin types: setup, the base image, doctor; and the limits of the kernel."""
