"""The engine, LXD or Incus: the only package that knows its paths, its answers and its errors.

The interface is in interface.py, by subject, and in streams.py for commands; types.py has its data.
lxd.py builds the implementation.
"""
