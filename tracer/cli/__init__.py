"""The command line: the one place that wires sources, pipeline and sinks."""
