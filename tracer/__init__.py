"""Tell where a packet died, which rule killed it, and since when."""

__version__ = "0.1.0"
