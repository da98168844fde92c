"""podyd: machines of their own, with GPUs, for the members of a research lab's server."""

VERSION = (0, 1, 0)
__version__ = ".".join(str(part) for part in VERSION)
