"""Tests on the running kernel: root, and namespaces that nothing can leave."""
