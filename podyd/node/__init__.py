"""What this host alone knows: its cards, processes, sockets, neighbours and directories."""
