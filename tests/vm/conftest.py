"""
What is here runs in a guest that tests/vm/run.sh booted, and nowhere else.

On the machine itself the same things are tested in tests/kernel, more closely.
"""

from __future__ import annotations

import os

# Collected as in tests/kernel: in private namespaces, as root.
from tests.kernel.conftest import netns, private_machine

__all__ = ["netns", "private_machine"]

collect_ignore_glob = [] if "NFTRACE_GUEST" in os.environ else ["test_*.py"]
