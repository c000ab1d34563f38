"""Functions as the running kernel's BTF and /proc/kallsyms have them."""

from __future__ import annotations

import pytest

from bpf.btf import Btf
from bpf.kprobes import attach_kprobe
from bpf.syscalls import find_module_btf
from tests.kernel import nets
from tracer.errors import KernelUnsupportedError
from tracer.sources.kernel_symbols import find_legacy_functions


def test_a_function_has_its_owner_and_first_parameter() -> None:
    """nf_hook_slow(skb, …) is the kernel's own; one that is nowhere is None."""
    nets.require("btf")
    btf = Btf()
    found = btf.function("nf_hook_slow")

    assert found is not None
    assert ("vmlinux", "skb") == (found.owner, found.first_parameter)
    assert found.number > 0
    assert btf.function("no_such_function_at_all") is None


def test_a_module_that_is_not_there_has_no_btf() -> None:
    """Asking for it is an error that names it."""
    with pytest.raises(KernelUnsupportedError, match="no_such_module"):
        find_module_btf("no_such_module")


def test_what_runs_legacy_tables_is_found() -> None:
    """Both families' walks are there where legacy tables are, at addresses of the kernel."""
    nets.require("legacy_tables")
    found = find_legacy_functions()

    assert len(found) >= 2
    assert all(address >> 63 for address in found)


def test_a_kernel_without_kprobes_says_so() -> None:
    """Attaching is an error with its reason: no kprobes, or no such function."""
    missing = "no_such_function_at_all" if nets.has_capability("kprobes") else "no kprobes"
    with pytest.raises(KernelUnsupportedError, match=missing):
        attach_kprobe(0, "no_such_function_at_all")
