"""The pure part: bytes and values in, values out; no I/O, no clock, no logging."""
