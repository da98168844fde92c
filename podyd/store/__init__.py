"""podyd's own database."""
