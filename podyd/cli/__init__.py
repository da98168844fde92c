"""The command `podyd`, for admins and for the service."""
