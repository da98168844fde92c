"""HTTP: from a request to a call, and from its answer to a response."""
