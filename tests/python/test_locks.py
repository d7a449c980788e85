"""Locks and forks."""

import os
import threading

import pytest

from edgewise.locks import ForkSafeLock


def test_one_thread_may_take_it_twice() -> None:
    lock = ForkSafeLock()
    with lock, lock:
        pass


def test_other_threads_wait() -> None:
    lock, inside = ForkSafeLock(), threading.Event()

    def enter() -> None:
        with lock:
            inside.set()

    thread = threading.Thread(target=enter)
    with lock:
        thread.start()
        assert not inside.wait(0.1)
    thread.join(10)
    assert inside.is_set()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_child_finds_it_free() -> None:
    lock, held, done = ForkSafeLock(), threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            done.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(10)
    child = os.fork()
    if child == 0:
        with lock:
            os._exit(7)
    _, status = os.waitpid(child, 0)
    done.set()
    thread.join(10)
    assert os.waitstatus_to_exitcode(status) == 7


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_the_thread_that_forks_keeps_it() -> None:
    lock = ForkSafeLock()
    with lock:
        child = os.fork()
    if child == 0:
        with lock:
            os._exit(7)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 7
