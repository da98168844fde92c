"""The admin's commands: setup, the base image, doctor; and the kernel's limits."""
