"""The host that pods run on: its NVML samples, processes, sockets, neighbours and directories."""
