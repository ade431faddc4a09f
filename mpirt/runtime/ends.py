"""Which ends a transfer gets: for small messages, for windows, or those for everything else. Both ranks choose alike."""

from __future__ import annotations

from mpirt.compiler.program import Transfer, path_of
from mpirt.runtime.rendezvous import Incoming, Outgoing, Wait
from mpirt.runtime.small_messages import SmallIncoming, SmallOutgoing, is_small
from mpirt.runtime.windows import WindowIncoming, WindowOutgoing
from mpirt.transport.base import Transport


def receiving_end(transport: Transport, transfer: Transfer, tag: int, wait: Wait | None) -> Incoming:
    """The receiving end of ``transfer``; ``wait`` is how a step waits for it, None if it doesn't."""
    if is_small(transfer):
        return SmallIncoming(transport, transfer, tag, wait)
    kind = WindowIncoming if path_of(transfer, transport.memory).window else Incoming
    return kind(transport, transfer, tag, wait)


def sending_end(transport: Transport, transfer: Transfer, tag: int, wait: Wait | None) -> Outgoing:
    """The sending end of ``transfer``; ``wait`` is how a step waits for the last one's value to have left."""
    if is_small(transfer):
        return SmallOutgoing(transport, transfer, tag, wait)
    kind = WindowOutgoing if path_of(transfer, transport.memory).window else Outgoing
    return kind(transport, transfer, tag, wait)
