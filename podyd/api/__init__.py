"""The HTTP side: requests come in, answers and errors go out as JSON. No decision is made here."""
