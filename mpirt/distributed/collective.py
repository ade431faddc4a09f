"""The replicated master: how ranks that run the same script agree on a step without one of them leading it.

Every rank makes the same collective calls in the same order. The first call of a signature is agreed upon through rank 0
(same fetches, same graph; the union of all ranks' feeds); later calls of it send no control message. A call that ends in
failure is settled: all ranks that failed report the same error, the one earliest in the plan's order. A failure that the
step itself makes known to all is every rank's; a deadline that a rank sets for itself may be that rank's alone, therefore
rank 0 asks all ranks how the call ended for them.

Where ranks don't make the same calls, somebody waits in vain. Whoever waits long tells rank 0 what it is doing
(``Status``); rank 0 compares that with the others' calls, also those that they have left behind, and breaks the job with
one error that names both sides.

To make a call costs a note of what was called from where. What is told of calls - their lines, the checksum of all of them -
is made from the notes when it is asked for.
Does not own: compiling and running (``collective_session``), messages and waits (``control``).
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from mpirt import errors
from mpirt.distributed.control import ControlPlane, Kind, to_error, to_record
from mpirt.distributed.control_pb2 import ErrorRecord, Feed, Goodbye, OperationList, OperationSummary, Proposal, Settlement, Status, Verdict
from mpirt.distributed.runner import closed_error
from mpirt.graph.fingerprint import digest, fingerprint, summary
from mpirt.graph.graph import Graph, Operation
from mpirt.graph.user_code import Caller, line_of
from mpirt.runtime.rendezvous import Abandoned, Wait

_SAME_CALLS = (
    "a collective Session needs every rank to call run() with the same fetches in the same order; keep run() out of"
    " `if rank == 0:` and out of loops whose length differs between ranks."
)
_REMEMBERED_CALLS = 4096  # at least; at most twice as many
_NO_CALL = -1
_DEADLINE = errors.DeadlineExceededError.__name__  # a wait given up; what it waited for may have failed elsewhere


@dataclass(slots=True)
class Opened:
    """A session that every rank has made.

    Attributes
    ----------
    number : the same on every rank
    closed : it makes no call any more; written while no call is under way (`Collective.between_calls`)
    """

    number: int
    closed: bool = False


@dataclass(frozen=True, slots=True)
class Wanted:
    """What calls of a session ask for: their fetches, by name."""

    session: Opened
    fetches: tuple[str, ...]


@dataclass(slots=True)
class Call:
    """One collective call as this rank made it."""

    number: int
    session: int
    fetches: tuple[str, ...]
    where: str
    proposed: bool = False
    failure: tuple[Exception, ErrorRecord] | None = None  # what failed on this rank

    def status(self, waiting_for: str = "") -> Status:
        """The call as a message."""
        return Status(call=self.number, session=self.session, fetches=self.fetches, where=self.where, waiting_for=waiting_for)

    def __str__(self) -> str:
        names = ", ".join(self.fetches[:4]) + (f" and {len(self.fetches) - 4} more" if len(self.fetches) > 4 else "")
        return f"run([{names}]) of session {self.session} at {self.where or 'an unknown line'}"


class Collective:
    """The agreement of all ranks on their calls; one for each process."""

    def __init__(self, plane: ControlPlane) -> None:
        self.plane = plane
        self.rank = plane.transport.rank
        self.size = plane.transport.size
        self._calls: dict[int, tuple[Wanted, Caller] | Call] = {}  # the last ones: notes, and what was told of
        self._next = 0
        self._current = _NO_CALL
        self._turn = threading.RLock()  # held during a call
        self._open = _NO_CALL  # the call that has begun and not come to its end on this rank
        self._unfinished: Callable[[], None] | None = None  # the rest of a call that this rank left by its own deadline
        self._settling: dict[int, dict[int, Settlement]] = {}  # rank 0: how failed calls ended, by call and rank
        self._statuses: dict[int, Status] = {}  # rank 0: calls in which ranks have waited for long
        self._history = 0  # checksum of calls: tells at the end whether all ranks have made the same
        self._counted = 0  # calls in it
        self._goodbyes: dict[int, Goodbye] = {}
        plane.status = self._status
        plane.on_poll = self._progress

    # ---- calls

    def begin(self, wanted: Wanted, place: Caller) -> None:
        """Enter the next collective call, once the rest of the one before is done and no other thread is in a call.

        Raises
        ------
        Abandoned
            If the job is broken.
        FailedPreconditionError
            If this thread is in a call already.
        RuntimeError
            If the session is closed.
        """
        self._turn.acquire()
        if self._current >= 0 or wanted.session.closed or self._unfinished is not None or self.plane.broken is not None:
            self._clear_the_way(wanted)
        calls = self._calls
        number = self._current = self._open = self._next
        self._next = number + 1
        calls[number] = wanted, place
        if len(calls) > 2 * _REMEMBERED_CALLS:
            self._forget()

    def end(self) -> None:
        """Leave the call."""
        assert self._current >= 0, "the end of no call"
        if self._unfinished is None:
            self._open = _NO_CALL
        self._current = _NO_CALL
        self._turn.release()

    def _clear_the_way(self, wanted: Wanted) -> None:
        """Do the rest of the call before; raises, and gives the turn back, if the next one can't begin."""
        try:
            if self._current >= 0:
                raise errors.FailedPreconditionError(
                    f"run() was called inside a step: {self.current()} is under way in this thread.",
                    hint="a function of tf.py_func runs on one rank only, so it can't make calls that all ranks must make.",
                )
            if wanted.session.closed:
                raise closed_error()
            self._finish()
            if self.plane.broken is not None:
                raise Abandoned(self.plane.broken)
        except BaseException:
            self._turn.release()
            raise

    def between_calls(self) -> AbstractContextManager[object]:
        """What is held to do something while no other thread is in a call; this one may be."""
        return self._turn

    def current(self) -> Call:
        """The call that this thread is in."""
        number = self._current
        call = self._call(number)
        assert call is not None, "not in a call"
        self._calls[number] = call
        return call

    def _call(self, number: int) -> Call | None:
        """A call that this rank has made, unless that was long ago."""
        found = self._calls.get(number)
        if found is None or isinstance(found, Call):
            return found
        wanted, place = found
        return Call(number, wanted.session.number, wanted.fetches, line_of(place))

    def _forget(self) -> None:
        """Drop the oldest calls, once they are in the checksum."""
        self._count_up_to(self._next - _REMEMBERED_CALLS)
        for number in range(self._next - len(self._calls), self._counted):
            del self._calls[number]

    def _count_up_to(self, end: int) -> None:
        """Have the checksum contain all calls before ``end``."""
        while self._counted < end:
            call = self._calls[self._counted]
            session, fetches = (call.session, call.fetches) if isinstance(call, Call) else (call[0].session.number, call[0].fetches)
            self._history = zlib.crc32(f"{session} {fetches}".encode(), self._history)
            self._counted += 1

    def postpone(self, rest: Callable[[], None]) -> None:
        """Leave the current call before its end; ``rest`` is what is still to be done, before the next call or at the end."""
        self._unfinished = rest

    def _finish(self) -> None:
        if self._unfinished is not None:
            rest, self._unfinished = self._unfinished, None
            rest()

    # ---- agreement

    def agree(
        self, call: Call, feeds: Sequence[str], operations: Sequence[Operation], options: str, knows: Callable[[str], bool]
    ) -> dict[str, list[int]]:
        """Compare the call with all ranks'; returns the union of their feeds, and the ranks that pass each.

        Parameters
        ----------
        call : this rank's call
        feeds : names of the tensors that this rank feeds
        operations : what the fetches depend on, in creation order
        options : what else must be equal
        knows : whether a tensor, by name, is in this rank's graph

        Raises
        ------
        Abandoned
            With one error on all ranks, if fetches, graphs or options differ.
        """
        call.proposed = True
        proposal = Proposal(call=call.number, session=call.session, fetches=call.fetches, feeds=feeds, options=options, where=call.where)
        proposal.fingerprint = fingerprint(operations)
        self.plane.send(0, Kind.PROPOSAL, proposal)
        if self.rank == 0:
            verdict = self._judge(call, operations, knows)
            self.plane.send_all(Kind.VERDICT, verdict)
        else:
            verdict = self._answer(Kind.VERDICT, call, "rank 0 to compare the first step of this signature on all ranks")
            if verdict.describe:
                self.plane.send(0, Kind.OPERATIONS, _describe(call, operations))
                verdict = self._answer(Kind.VERDICT, call, "rank 0 to find the first operation that differs between the ranks")
        if verdict.HasField("error"):
            self.plane.broken = self.plane.broken or to_error(verdict.error, None)
            raise Abandoned(self.plane.broken)
        return {feed.name: list(feed.ranks) for feed in verdict.feeds}

    def _judge(self, call: Call, operations: Sequence[Operation], knows: Callable[[str], bool]) -> Verdict:
        """Rank 0: the answer to all proposals of the call."""
        proposals = self._gather(Kind.PROPOSAL, call, "propose the same call")
        mine = proposals[0]
        asked = [(p.session, list(p.fetches)) for _, p in sorted(proposals.items())]
        different = [r for r in range(1, self.size) if asked[r] != asked[0]]
        if different:
            other = proposals[different[0]]
            theirs = Call(call.number, other.session, tuple(other.fetches), other.where)
            return _refusal(call, self._disagreement(call.number, [(0, str(call)), (different[0], str(theirs))]))
        different = [r for r in range(1, self.size) if proposals[r].options != mine.options]
        if different:
            rank = different[0]
            return _refusal(call, errors.InvalidArgumentError(
                f"ranks made their sessions with different options: rank 0 has {mine.options!r},"
                f" {self.plane.describe_rank(rank)} has {proposals[rank].options!r}.",
                hint="make the Session with the same arguments on every rank.",
            ))  # fmt: skip
        different = [r for r in range(1, self.size) if proposals[r].fingerprint != mine.fingerprint]
        if different:
            self.plane.send_all(Kind.VERDICT, Verdict(call=call.number, describe=True))
            self.plane.send(0, Kind.OPERATIONS, _describe(call, operations))
            lists = self._gather(Kind.OPERATIONS, call, "list their operations")
            return _refusal(call, self._difference(lists, different))
        feeders: dict[str, list[int]] = {}
        for r in range(self.size):
            for name in proposals[r].feeds:
                feeders.setdefault(name, []).append(r)
        for name in sorted(feeders):
            if not knows(name):
                return _refusal(call, self.unknown_feed(name, feeders[name]))
        return Verdict(call=call.number, feeds=[Feed(name=n, ranks=feeders[n]) for n in sorted(feeders)])

    def unknown_feed(self, name: str, ranks: Sequence[int]) -> errors.InvalidArgumentError:
        """The error for a tensor that ``ranks`` feed and this rank's graph doesn't have."""
        return errors.InvalidArgumentError(
            f"ranks built different graphs: {name!r}, which is fed on rank(s) {', '.join(map(str, ranks))}, is not in the graph"
            f" of {self.plane.describe_rank(self.rank)}.",
            hint="build the same graph on every rank.",
        )

    def _difference(self, lists: dict[int, OperationList], different: Sequence[int]) -> errors.InvalidArgumentError:
        """The error that names the first operation that differs, with the user's line on both sides."""
        mine, rank = lists[0].operations, different[0]
        theirs = lists[rank].operations
        pairs = enumerate(zip(mine, theirs, strict=False))
        position = next((i for i, (a, b) in pairs if a.digest != b.digest), min(len(mine), len(theirs)))
        groups: dict[tuple[bytes, ...], list[int]] = {}
        for r, operations in sorted(lists.items()):
            groups.setdefault(tuple(o.digest for o in operations.operations), []).append(r)
        alike = "; ".join(
            f"ranks {', '.join(map(str, ranks))} agree" if len(ranks) > 1 else f"rank {ranks[0]} stands alone" for ranks in groups.values()
        )
        return errors.InvalidArgumentError(
            f"ranks built different graphs; the first operation that differs is number {position} of what the fetches need:"
            f"\n  rank 0: {_operation_text(mine, position)}"
            f"\n  {self.plane.describe_rank(rank)}: {_operation_text(theirs, position)}"
            f"\n  ({alike}.)",
            hint="build the same graph on every rank: no operation may depend on the rank, on time, on a set's order or on a random name.",
        )

    # ---- settlement of a failed call

    def fail(self, call: Call, error: Exception | None, position: int, traceback: str) -> None:
        """Tell rank 0 that the call failed here.

        Parameters
        ----------
        call : this rank's call
        error : what failed on this rank, None if it only learnt of a failure elsewhere
        position : of the failed operation in the plan
        traceback : of this rank's error
        """
        settlement = Settlement(call=call.number)
        if error is not None:
            settlement.error.CopyFrom(to_record(error, position, traceback))
            call.failure = error, settlement.error
        self.plane.send(0, Kind.SETTLEMENT, settlement)

    def settle(self, call: Call, graph: Graph, wait: Wait) -> Exception:
        """The one error of a failed call, the same on all ranks on which it failed.

        Parameters
        ----------
        call : this rank's call
        graph : where the failed operation is looked up
        wait : how to wait; when it gives up, this may be called again

        Raises
        ------
        Abandoned
            If the job is broken meanwhile.
        """
        record = self._answer(Kind.OUTCOME, call, "all ranks to end the failed step", wait).error
        self.plane.take(Kind.SETTLING, lambda s, m: m.call == call.number)
        if self._open == call.number:
            self._open = _NO_CALL
        if call.failure is not None and call.failure[1] == record:
            return call.failure[0]
        return to_error(record, graph)

    def _progress(self) -> None:
        """While this rank waits: answer for calls that it has left behind, and as rank 0 settle and compare."""
        for _, question in self.plane.take(Kind.SETTLING, lambda s, m: m.call < self._next and m.call != self._open):
            self.plane.send(0, Kind.SETTLEMENT, Settlement(call=question.call))
        self.plane.take(Kind.OUTCOME, lambda s, m: m.call != self._open)  # of calls that went well here
        for _, question in self.plane.take(Kind.QUESTION, lambda s, m: m.call < self._next):
            if (call := self._call(question.call)) is not None:
                self.plane.send(0, Kind.ANSWER, call.status())
        if self.rank == 0:
            self._settle_all()
            self._compare()

    def _settle_all(self) -> None:
        """Rank 0: ask how a call ended when the first rank tells that it failed; once all have told, tell them the error."""
        plane = self.plane
        for source, settlement in plane.take(Kind.SETTLEMENT, lambda s, m: True):
            if settlement.call not in self._settling:
                self._settling[settlement.call] = {}
                plane.send_all(Kind.SETTLING, Settlement(call=settlement.call))
                plane.send(0, Kind.SETTLING, Settlement(call=settlement.call))
            self._settling[settlement.call][source] = settlement
        for number in [n for n, found in self._settling.items() if len(found) == self.size]:
            found = self._settling.pop(number)
            failed = [(s.error.kind == _DEADLINE, s.error.position, r) for r, s in found.items() if s.HasField("error")]
            assert failed, f"call {number}: every rank was told of a failure, but none failed"
            outcome = Settlement(call=number, error=found[min(failed)[2]].error)
            plane.send_all(Kind.OUTCOME, outcome)
            plane.send(0, Kind.OUTCOME, outcome)

    # ---- the end of the script

    def leave(self, await_end: Callable[[], None] = lambda: None) -> None:
        """Wait, by name, until all ranks have come to the end of their script; hears meanwhile if they can't.

        Parameters
        ----------
        await_end : waits for the end of the sessions on servers. Called first where this rank has made no collective call:
            the loss of a rank, which ends a collective job at once, then leaves the others at work

        Raises
        ------
        Abandoned
            If the job is broken, also where the script has caught that error; if a rank is in a call that this rank will
            never make, or is dead.
        """
        self._current = _NO_CALL
        self._finish()
        if self.plane.broken is not None:
            raise Abandoned(self.plane.broken)
        self._count_up_to(self._next)
        self.plane.send(0, Kind.GOODBYE, Goodbye(calls=self._next, history=self._history))
        if not self._next:
            await_end()
        if self.rank == 0:
            self.plane.wait(self._all_said_goodbye, self._describe_missing_goodbyes, timeout_s=0)
            self._compare_goodbyes()
            self.plane.send_all(Kind.LEAVE, Goodbye(calls=self._next))
        else:
            self.plane.wait(self._may_leave, lambda: "the other ranks to come to the end of the script", timeout_s=0)

    def _compare_goodbyes(self) -> None:
        """Rank 0: refuse an end to which ranks came by different calls, even if no rank waited in vain."""
        calls = {rank: goodbye.calls for rank, goodbye in sorted(self._goodbyes.items())}
        most, fewest = max(calls, key=calls.__getitem__), min(calls, key=calls.__getitem__)
        if calls[most] != calls[fewest]:
            sides = [(rank, f"the end of its script after {calls[rank]} calls") for rank in (fewest, most)]
            self.plane.break_job(self._disagreement(calls[fewest], sides))
            self.plane.check()
        odd = [rank for rank, goodbye in sorted(self._goodbyes.items()) if goodbye.history != self._history]
        if odd:
            self.plane.break_job(errors.AbortedError(
                f"ranks didn't make the same calls: each made {self._next}, but those of {self.plane.describe_rank(odd[0])} fetched"
                " something else than those of rank 0, or in another order.",
                hint=_SAME_CALLS,
            ))  # fmt: skip
            self.plane.check()

    def _may_leave(self) -> bool:
        self.plane.poll_all()
        return bool(self.plane.mail[Kind.LEAVE])

    def _all_said_goodbye(self) -> bool:
        self.plane.poll_all()
        self._compare()
        return len(self._goodbyes) == self.size

    def _describe_missing_goodbyes(self) -> str:
        missing = [r for r in range(self.size) if r not in self._goodbyes]
        return f"{self._names(missing)} to come to the end of the script"

    # ---- rank 0 compares

    def _status(self, waiting_for: str) -> Status | None:
        call = self._call(self._current)
        return None if call is None else call.status(waiting_for)

    def _compare(self) -> None:
        """Rank 0: break the job if the ranks can't be making the same calls."""
        plane = self.plane
        for source, goodbye in plane.take(Kind.GOODBYE, lambda s, m: True):
            self._goodbyes[source] = goodbye
        for source, status in plane.take(Kind.STATUS, lambda s, m: True):
            self._statuses[source] = status
            plane.send_all(Kind.QUESTION, Status(call=status.call))  # maybe a rank has gone on from another call of this number
        told = [*self._statuses.items(), *plane.take(Kind.ANSWER, lambda s, m: True)]
        made = [(r, Call(s.call, s.session, tuple(s.fetches), s.where)) for r, s in told]
        for rank, proposal in plane.mail[Kind.PROPOSAL]:
            made.append((rank, Call(proposal.call, proposal.session, tuple(proposal.fetches), proposal.where, proposed=True)))
        for rank, theirs in made:
            mine = self._call(theirs.number)
            if mine is not None and (mine.session, mine.fetches) != (theirs.session, theirs.fetches):
                plane.break_job(self._disagreement(theirs.number, [(0, str(mine)), (rank, str(theirs))]))
            elif mine is not None and theirs.proposed and not mine.proposed:
                plane.break_job(self._feed_disagreement(mine, rank))
            for other, goodbye in self._goodbyes.items():
                if goodbye.calls <= theirs.number:
                    plane.break_job(self._disagreement(theirs.number, [(other, "the end of its script"), (rank, str(theirs))]))

    def _disagreement(self, number: int, sides: Sequence[tuple[int, str]]) -> errors.AbortedError:
        lines = "".join(f"\n  {self.plane.describe_rank(rank)}: {what}" for rank, what in sides)
        return errors.AbortedError(
            f"ranks don't make the same calls: collective call {number} is{lines}",
            hint=_SAME_CALLS,
        )

    def _feed_disagreement(self, mine: Call, rank: int) -> errors.AbortedError:
        return errors.AbortedError(
            f"ranks feed different tensors in call {mine.number}, {mine}: {self.plane.describe_rank(rank)} changed which keys"
            " it passes, so that its step is not the one that the other ranks run.",
            hint="pass the same feed keys on every rank when they change from step to step; values count only where the placeholder lives.",
        )

    def _names(self, ranks: Sequence[int]) -> str:
        """Ranks that are waited for: the first few, and how many there are."""
        return f"{', '.join(map(self.plane.describe_rank, ranks[:4]))} ({len(ranks)} of {self.size} ranks missing)"

    # ---- messages of a call

    def _gather(self, kind: Kind, call: Call, what: str) -> dict[int, Any]:
        found: dict[int, Any] = {}

        def complete() -> bool:
            self.plane.poll_all()
            found.update(self.plane.take(kind, lambda s, m: m.call == call.number))
            return len(found) == self.size

        def missing() -> str:
            ranks = [r for r in range(self.size) if r not in found]
            return f"{self._names(ranks)} to {what}, call {call.number}, {call}"

        self.plane.wait(complete, missing)
        return found

    def _answer(self, kind: Kind, call: Call, what: str, wait: Wait | None = None) -> Any:
        found: list[tuple[int, Any]] = []

        def arrived() -> bool:
            self.plane.poll_all()
            found.extend(self.plane.take(kind, lambda s, m: m.call == call.number))
            return bool(found)

        (wait or self.plane.wait)(arrived, lambda: f"{what}, call {call.number}, {call}")
        return found[0][1]


def _refusal(call: Call, error: Exception) -> Verdict:
    return Verdict(call=call.number, error=to_record(error))


def _describe(call: Call, operations: Sequence[Operation]) -> OperationList:
    return OperationList(
        call=call.number,
        operations=[OperationSummary(name=o.name, type=o.type, where=o.location, digest=digest(o), summary=summary(o)) for o in operations],
    )


def _operation_text(operations: Sequence[OperationSummary], position: int) -> str:
    if position >= len(operations):
        return f"nothing (it has only {len(operations)} operations)"
    op = operations[position]
    text = op.summary if len(op.summary) <= 200 else op.summary[:197] + "..."
    return f"{text}, defined at {op.where}"



