"""Members: logins, tokens, sessions, and the limits of each."""
