"""Packets: small tensors for one rank that are ready together travel as one message.

A message costs as much as some small operations, however short it is. So tensors that a rank makes for another one shortly after
each other wait for the last of them and leave as one. Guarantees:

- no deadlock: while a rank holds a tensor back it receives nothing that is not there already, with what it has received, and
  runs nothing that may block, so the packet leaves whatever the other ranks do;
- the delay is bounded: at most `MOST_OPERATIONS` operations run meanwhile, each on small tensors of static shape (a message
  is taken to cost about as much as these, see ``schedule``); how long a user's own operations take isn't known, so not two of them
  of which one waits for the other;
- decided from the plan alone, so both ends find the same packets.

What a user fetches, what he feeds, and tensors of unknown size travel alone.
Owns: which transfers share a message. Does not own: bytes (``runtime.packets``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from mpirt import dtypes
from mpirt.cluster.task import Task
from mpirt.compiler.partition import Node, Plan, message_nbytes
from mpirt.graph.function import has_body
from mpirt.graph.graph import Operation, Tensor

if TYPE_CHECKING:
    from mpirt.compiler.program import Transfer

PACKET_NBYTES = 4096  # of a whole packet: copied in and out in less time than a message takes, and sent whole by every MPI
BOX_NBYTES = (1 << 14) - 1  # of a tensor that goes through a box by itself; a larger one lies in a window
MOST_TENSORS = 64
MOST_OPERATIONS = 8

Packet = tuple["Transfer", ...]


def is_small(transfer: Transfer) -> bool:
    """Whether a transfer is short enough for a packet, and of a size known while compiling; one that is received in its place isn't."""
    return not transfer.in_place and 0 < packed_nbytes(transfer) <= (BOX_NBYTES if transfer.on_board else PACKET_NBYTES)


def packed_nbytes(transfer: Transfer) -> int:
    """Bytes of a transfer in a packet: 1 for the end of an operation and for an empty tensor; 0 if not known while compiling."""
    nbytes = transfer.nbytes
    return 0 if nbytes is None else max(1, nbytes)


def find_packets(
    plan: Plan,
    rank_of: Callable[[Task], int],
    transfers: Sequence[Transfer],
    by_edge: Mapping[int, int],
    starts: Mapping[Operation, Iterable[int]],
) -> list[Packet]:
    """The packets of all ranks: transfers that share a message, in the order in which they are ready.

    Parameters
    ----------
    plan, rank_of : what runs where, in which order
    transfers : of all ranks
    by_edge : transfer of each edge that leaves its rank
    starts : transfers, of those that may share a message, that start behind each operation
    """
    return _Packer(plan, rank_of, transfers).pack(by_edge, starts)


class _Open:
    """A packet that more may join."""

    def __init__(self, first: Transfer) -> None:
        self.transfers = [first]
        self.nbytes = packed_nbytes(first)
        self.operations = 0
        self.users = {first.op}  # the user's own operations among those that made the first, or have run since

    def takes(self, transfer: Transfer) -> bool:
        return len(self.transfers) < MOST_TENSORS and self.nbytes + packed_nbytes(transfer) <= PACKET_NBYTES

    def add(self, transfer: Transfer) -> None:
        self.transfers.append(transfer)
        self.nbytes += packed_nbytes(transfer)


class _Packer:
    def __init__(self, plan: Plan, rank_of: Callable[[Task], int], transfers: Sequence[Transfer]) -> None:
        self.plan = plan
        self.rank_of = rank_of
        self.transfers = transfers
        self.open: dict[int, dict[int, _Open]] = {}  # by source and destination; none of a rank that holds nothing back
        self.joined: dict[int, _Open] = {}  # the packet of each small transfer
        self.packets: list[Packet] = []

    def pack(self, by_edge: Mapping[int, int], starts: Mapping[Operation, Iterable[int]]) -> list[Packet]:
        received: set[object] = set()  # transfers that travel alone, and packets, also what joins them later
        joined, collectives = self.joined, self.plan.collectives
        for node in self.plan.nodes:
            coming = {joined.get(by_edge[edge], by_edge[edge]) for edge in node.waits if edge in by_edge} - received if node.waits else None
            if coming:
                received |= coming
            if collectives and node.fed is None and node.op in collectives:  # all that take part wait for one another
                for task in collectives[node.op].tasks:
                    self._close(self.rank_of(task))
            if self.open:
                rank = self.rank_of(node.device.task)
                if rank in self.open:
                    if coming or not _is_quick(node):
                        self._close(rank)
                    else:
                        self._count_operation(rank, node.op)
            if node.op in starts and node.fed is None:
                for index in starts[node.op]:
                    self._start(self.transfers[index])
        for rank in list(self.open):
            self._close(rank)
        return self.packets

    def _count_operation(self, rank: int, op: Operation) -> None:
        """Another operation runs while the rank holds tensors back."""
        users = _is_the_users(op)
        for destination, packet in list(self.open[rank].items()):
            packet.operations += 1
            if packet.operations > MOST_OPERATIONS or users and any([tensor.op in packet.users for tensor in op.inputs]):
                self._close(rank, destination)
            elif users:
                packet.users.add(op)

    def _start(self, transfer: Transfer) -> None:
        if not is_small(transfer) or packed_nbytes(transfer) > PACKET_NBYTES:  # as much by itself as a whole packet may be
            return
        packet = self.open.get(transfer.src_rank, {}).get(transfer.dst_rank)
        if packet is not None and packet.takes(transfer):
            packet.add(transfer)
        else:
            if packet is not None:
                self._close(transfer.src_rank, transfer.dst_rank)
            packet = self.open.setdefault(transfer.src_rank, {})[transfer.dst_rank] = _Open(transfer)
        self.joined[transfer.index] = packet

    def _close(self, rank: int, destination: int | None = None) -> None:
        packets = self.open.get(rank, {})
        for each in list(packets) if destination is None else [destination]:
            packet = packets.pop(each)
            if len(packet.transfers) > 1:
                self.packets.append(tuple(packet.transfers))
        if not packets:
            self.open.pop(rank, None)


def _is_quick(node: Node) -> bool:
    """Whether the node can neither block nor, as far as can be known, take long."""
    op = node.op
    if node.fed is not None:
        return True
    if op.definition.stateful or has_body(op) or node.device.type != "CPU":
        return False
    return all(_is_small_tensor(tensor) for tensor in (*op.inputs, *op.outputs))


def _is_the_users(op: Operation) -> bool:
    """Whether the operation type is the user's, not one of this package."""
    kernel = op.definition.kernels["CPU"]
    return kernel.function is not None and not kernel.function.__module__.startswith("mpirt.")


def _is_small_tensor(tensor: Tensor) -> bool:
    nbytes = None if tensor.dtype.base_dtype is dtypes.resource else message_nbytes(tensor.dtype.base_dtype, tensor.static_shape)
    return nbytes is not None and nbytes <= PACKET_NBYTES
