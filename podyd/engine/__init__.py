"""LXD: the only place that knows its paths, its answers and what goes wrong with it.

What podyd asks of it is in interface.py, by subject, and in streams.py for commands; types.py has
what is asked and told. lxd.py puts together what asks LXD.
"""
