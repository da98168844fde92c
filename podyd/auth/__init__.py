"""The root helper that asks PAM and NSS, and the client that asks it."""
