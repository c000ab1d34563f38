"""Tests of the C records, their mirror, the loader and the ring reader."""
