"""Who may come in, with what, and how much is theirs."""
