"""eBPF programs in C and their Python mirror."""
