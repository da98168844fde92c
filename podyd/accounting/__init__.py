"""Usage by member, and metrics of podyd."""
