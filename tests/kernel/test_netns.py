"""Entering network namespaces by what was found of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.kernel import nets
from tracer.errors import KernelRefusedError
from tracer.sources.netns import current_namespace, entered, find_namespace

if TYPE_CHECKING:
    from collections.abc import Callable


def test_a_name_that_was_given_anew_is_not_entered(netns: Callable[..., str]) -> None:
    """What was found under a name is entered, and never another namespace in its stead."""
    found = find_namespace(netns("one"))
    with entered(found):
        assert found.inode == current_namespace().inode
        # Held by this thread, its number is not given to the next.
        nets.delete_netns("one")
        nets.add_netns("one")
        with pytest.raises(KernelRefusedError, match="not where it was found"), entered(found):
            pytest.fail("another namespace was entered")
