"""`pody`: what the members of a lab type, on their own machines.

It speaks the HTTP API and shares nothing with the service but the version number. Python's own
library is all that it needs, on Linux, macOS and Windows; exec and shell also need the library
websocket-client, and shell a Unix terminal.
"""
