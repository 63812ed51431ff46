"""Counting native calls, and what is called when the program ends."""

from __future__ import annotations

import atexit
import gc
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest

from editverse_rt import native_calls
from editverse_rt.errors import RequestCancelled
from editverse_rt.native_calls import NativeCalls, at_exit

PATIENCE_S = 60


class Owner:
    """Whose calls are counted."""


@pytest.fixture
def hooks(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
    """What would be called when this program ends."""
    found: list[Callable[[], None]] = []

    class Atexit:
        register = staticmethod(found.append)
        # What other tests left behind is finalized whenever it is collected, and was never registered here.
        unregister = staticmethod(lambda call: found.remove(call) if call in found else None)

    monkeypatch.setattr(native_calls, "atexit", Atexit)
    return found


def test_the_end_waits_for_the_calls_under_way(hooks: list[Any]) -> None:
    owner = Owner()
    calls = NativeCalls(owner)
    inside, leave, ended = threading.Event(), threading.Event(), threading.Event()

    def call() -> None:
        with calls:
            inside.set()
            assert leave.wait(PATIENCE_S)

    def end() -> None:
        hooks[0]()
        ended.set()

    caller, ender = threading.Thread(target=call), threading.Thread(target=end)
    caller.start()
    assert inside.wait(PATIENCE_S)
    assert calls.are_running
    ender.start()
    assert not ended.wait(0.05)
    leave.set()
    assert ended.wait(PATIENCE_S)
    assert not calls.are_running
    for thread in (caller, ender):
        thread.join(PATIENCE_S)


def test_an_error_in_a_call_ends_it(hooks: list[Any]) -> None:
    owner = Owner()
    calls = NativeCalls(owner)
    with pytest.raises(KeyError), calls:
        raise KeyError
    assert not calls.are_running
    calls.end()
    with pytest.raises(RequestCancelled, match="the program is ending"), calls:
        pass


def test_a_freed_owner_leaves_nothing_behind(hooks: list[Any]) -> None:
    owner = Owner()
    owner.calls = NativeCalls(owner)  # type: ignore[attr-defined]
    assert len(hooks) == 1
    del owner
    gc.collect()
    assert hooks == []


def test_a_key_pressed_during_the_end_does_not_cut_it_short(hooks: list[Any]) -> None:
    done: list[int] = []

    def step() -> None:
        done.append(len(done))
        if len(done) < 3:
            raise KeyboardInterrupt

    forget = at_exit(step)
    hooks[0]()
    assert done == [0, 1, 2]
    forget()
    assert hooks == []


def test_another_process_does_nothing(hooks: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []
    at_exit(lambda: done.append(1))
    monkeypatch.setattr(native_calls.os, "getpid", lambda: -1)
    hooks[0]()
    assert done == []


def test_hooks_are_pythons(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(atexit, "register", lambda call: seen.append("register"))
    monkeypatch.setattr(atexit, "unregister", lambda call: seen.append("unregister"))
    at_exit(os.getpid)()
    assert seen == ["register", "unregister"]
