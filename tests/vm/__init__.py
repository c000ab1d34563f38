"""Tests on other kernels than this machine's, and what starts those."""
