"""Views of the event log that leave the process: JSON lines, pcapng."""
