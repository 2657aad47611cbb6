"""Which slots hold copies of which: a closed form of the rank table, so that nobody needs to be asked. Pure.

A copy lies in another failure domain than what it is a copy of, and copies of one slot in different ones. The form
starts from slot numbers, so that a spare that takes over a slot leaves the holders of the others where they are: the
copies are there. Neighbour: `agent.copies`, which keeps them.
"""

from __future__ import annotations

from collections.abc import Sequence

from behemoth.base.ids import Slot


def holders(slot: int, domains: Sequence[int], *, stride: int, copies: int) -> tuple[Slot, ...]:
    """The slots that hold copies of `slot`; `domains[slot]` is the failure domain of its node.

    Copy j is at the first slot from `slot + j * stride` on, around the end, that is in a domain of its own. With
    `stride` the size of a domain, whose nodes are neighbours, that is the slot itself, and every slot holds as many
    copies as every other. Fewer than `copies` when there are not domains enough.
    """
    chosen: list[int] = []
    for number in range(1, copies + 1):
        used = {domains[slot], *(domains[other] for other in chosen)}
        around = ((slot + number * stride + step) % len(domains) for step in range(len(domains)))
        found = next((other for other in around if domains[other] not in used), None)
        if found is None:
            break
        chosen.append(found)
    return tuple(Slot(other) for other in chosen)


def wards(slot: int, domains: Sequence[int], *, stride: int, copies: int) -> tuple[Slot, ...]:
    """The slots whose copies `slot` holds. O(slots x copies) where slots of a domain are neighbours."""
    copies = min(copies, len(set(domains)) - 1)  # or every slot would look for a further domain among all
    return tuple(
        Slot(other) for other in range(len(domains)) if slot in holders(other, domains, stride=stride, copies=copies)
    )


def asked(slot: int, domains: Sequence[int], *, stride: int, copies: int) -> tuple[Slot, ...]:
    """Who may have a copy of `slot`, likeliest first: its holders, and who would hold it if the node in `slot` were in
    a domain of its own, as the one before it may have been."""
    own = max(domains) + 1
    before = [own if other == slot else domain for other, domain in enumerate(domains)]
    now = holders(slot, domains, stride=stride, copies=copies)
    return tuple(dict.fromkeys((*now, *holders(slot, before, stride=stride, copies=copies))))
