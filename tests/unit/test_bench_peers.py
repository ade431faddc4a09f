"""The suite's children: what they are asked they answer, one that fails is named with what it printed, none is left behind."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).resolve().parents[2] / "scripts" / "bench"


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(BENCH))
    import peers

    yield peers
    sys.modules.pop("peers")


@pytest.fixture
def child(peers: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Start a child that runs some code after its imports."""
    started: list[Any] = []

    def start(code: str, *arguments: str) -> Any:
        script = tmp_path / "child.py"
        script.write_text(f"import os, sys, time\nsys.path.insert(0, {str(BENCH)!r})\nfrom peers import Peer, serve\n{code}\n")
        started.append(peers.Peer(sys.executable, str(script), *arguments))
        return started[-1]

    yield start
    for each in started:
        each.close()


def wait_until_gone(pid: int, timeout_s: float = 20.0) -> None:
    """A process that was killed is there until it gets the core that it dies on."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX":
                return
        except (FileNotFoundError, ProcessLookupError):
            return
        time.sleep(0.01)
    raise AssertionError(f"process {pid} lives {timeout_s:g} s after its end")


def test_a_child_says_who_it_is_and_answers_each_request(child: Callable[..., Any]) -> None:
    peer = child("serve('7.1' + sys.argv[1], [os.getpid()], lambda request: {'sum': sum(request['of'])})", "b")
    assert peer.version == "7.1b"
    os.kill(peer.pids[0], 0)  # it lives
    assert peer.ask(of=[1, 2]) == {"sum": 3}
    peer.tell(of=[4, 5])
    assert peer.answer() == {"sum": 9}
    peer.close()
    with pytest.raises(ProcessLookupError):
        os.kill(peer.pids[0], 0)


def test_a_child_does_not_take_itself_for_a_rank(child: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "PYTHONPATH"):
        monkeypatch.setenv(name, "1")
    peer = child("serve('', [], lambda request: {name: name in os.environ for name in request['names']})")
    names = ["OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "PYTHONPATH", "PATH"]
    assert peer.ask(names=names) == dict.fromkeys(names, False) | {"PATH": True}


def test_a_child_that_ends_is_told_with_its_status_what_it_was_asked_and_what_it_printed(peers: Any, child: Callable[..., Any]) -> None:
    peer = child("serve('', [], lambda request: sys.exit('no such case: ' + request['case']))")
    with pytest.raises(peers.PeerError) as caught:
        peer.ask(case="spin")
    assert str(caught.value).endswith("child.py ended and didn't answer {'case': 'spin'} (exit status 1). It printed:\nno such case: spin")


def test_a_child_that_does_not_start_is_told_with_what_it_printed(peers: Any, child: Callable[..., Any]) -> None:
    with pytest.raises(peers.PeerError, match=r"ended and didn't start \(exit status 1\)[^$]*No module named 'tensorflown'"):
        child("import tensorflown")


def test_an_interpreter_that_is_not_there_is_named(peers: Any) -> None:
    with pytest.raises(peers.PeerError, match=r"can't start /no/python tensorflow_peer.py: .* Mend: name an interpreter"):
        peers.Peer("/no/python", "tensorflow_peer.py")


def test_a_child_that_says_nothing_is_given_up_and_all_its_processes_end(peers: Any, child: Callable[..., Any]) -> None:
    code = "pid = os.fork()\nif pid == 0: time.sleep(600)\nserve('', [os.getpid(), pid], lambda request: time.sleep(600))"
    peer = child(code)
    peer.tell(case="sleep")
    peers.END_S = 0.1
    with pytest.raises(peers.PeerError, match=r"said nothing for 0.2 s and didn't answer \{'case': 'sleep'\} \(exit status -9\)"):
        peer.answer(timeout_s=0.2)
    for pid in peer.pids:
        wait_until_gone(pid)


def test_a_child_s_own_children_end_with_it(child: Callable[..., Any]) -> None:
    code = (
        "if len(sys.argv) > 1: serve('', [os.getpid()], lambda request: {}); sys.exit()\n"
        "mine = Peer(sys.executable, sys.argv[0], 'again', own_group=False)\n"
        "serve('', [os.getpid(), *mine.pids], lambda request: mine.ask())"
    )
    peer = child(code)
    assert peer.ask() == {}
    peer.close()
    for pid in peer.pids:
        wait_until_gone(pid)
