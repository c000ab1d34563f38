"""
Keeping a follow armed where the rules are others by now.

Which packets to pick, and where our chains must stand, is read from the ruleset: chains
that come later, in front of ours or at a hook where nobody had any, and translations that
are set up later, would let packets pass us by. So the plan is made anew when any of that
has changed, and takes the place of the old one in one transaction.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tracer.core.arm_hooks import find_places
from tracer.errors import NftraceError
from tracer.sources.netns import entered

if TYPE_CHECKING:
    from collections.abc import Callable

    from tracer.core.arming import ArmingPlan
    from tracer.core.ruleset import Ruleset
    from tracer.sources.arming import Armed
    from tracer.sources.netns import Netns

__all__ = ["Rearming"]

#: Planning, which nobody waits for but the trace, may take this share of the time.
_SHARE = 20


class Rearming:
    """
    One namespace's arming, looked after.

    *plan* reads the rules of the calling thread's namespace and plans; *armed* is in force
    for *ruleset*. *notes* say what could not be done.
    """

    def __init__(
        self, namespace: Netns, plan: Callable[[], ArmingPlan], armed: Armed, ruleset: Ruleset
    ) -> None:
        self.notes: list[str] = []
        self._namespace = namespace
        self._plan = plan
        self._armed = armed
        self._known = ruleset
        self._places = find_places(ruleset)
        self._not_before_ns = 0

    def look(self, ruleset: Ruleset) -> None:
        """Arm anew if *ruleset*, which is in force, asks for it; called again and again."""
        began_ns = time.monotonic_ns()
        if ruleset is self._known or began_ns < self._not_before_ns:
            return
        if not self._armed.is_in_force:
            # Who was disarmed still reads what is queued, and the rules that it needs for it.
            return
        self._known = ruleset
        places = find_places(ruleset)
        if places == self._places:
            return
        self._places = places
        try:
            with entered(self._namespace):
                self._armed.replace(self._plan())
        except NftraceError as exc:
            # What was armed still is.
            note = f"netns {self._namespace.name}: the rules changed, and arming did not: {exc}"
            if note not in self.notes:
                self.notes.append(note)
        self._not_before_ns = began_ns + (time.monotonic_ns() - began_ns) * _SHARE
