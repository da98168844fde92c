"""What an admin types: setup, profiles, the base image, doctor."""
