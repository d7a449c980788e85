"""Texts of one model share passes over its weights: continuous batching, without a thread of its own.

What a text needs computed next is a `Work`: some tokens to append, and perhaps one to sample behind them. The
thread that needs it hands it in and waits. One of the waiting threads leads: it takes the works of all that
wait, and does a step of each in one pass over the weights. So texts join and leave between steps.

    wait, in each thread:                          a step, by the leader:
      until one of my works is finished:             for a moment, wait for texts about to come back
        if nobody leads: lead a step, and then       of the oldest `max_batch` texts take a token each,
          wake those it was for, and a new leader      or of prompts a slice together
        else: sleep until somebody wakes me          one native call: pass, logits, sampled tokens

- *Order.* The oldest texts go first. Later ones wait until one of them ends, or is not being waited for: a
  stream whose consumer is busy keeps nobody waiting, and runs ahead of nobody by a single token.
- *Moment.* A thread that got a token brings its next work within microseconds, while a new step could begin
  at once without it. So the leader waits for texts that came back quickly the last time, but not for long.
- *Fairness.* Beside texts that decode, prompts get `SLICE` tokens of a step together, so a long prompt stops
  nobody. Those that are done soonest go first, which makes the mean wait for a first token the shortest; a
  part is always the oldest one's, which short ones that keep coming could else hold up without end.
- *Failure.* A work has its own outcome; errors of others do not reach it. What a leader leaves undone when
  Ctrl-C strikes it, anywhere, the next one does: the state of everything is in the works, which are native.
  Wake-ups make it quick and nothing depends on them: sleepers look around every `PATIENCE` seconds.
- *Bits.* The engine gives each text the bits it would have alone, so nothing here can change an answer.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
import weakref
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from typing import Protocol, TypeVar

from edgewise._native import Engine, Work
from edgewise.results import Piece

MAX_BATCH = 8
"""Texts that share a step, unless somebody says."""
MAX_REQUESTS = 256
"""Texts under way, unless somebody says; one more is refused."""
SLICE = 64
"""Tokens of prompts in a step beside texts that decode."""
OLDEST_SHARE = 4
"""Of these the oldest prompt gets one part in so many at least."""
GRACE = 0.003
"""Seconds that a step waits for texts that are likely to come back, at least,"""
GRACE_SHARE = 8
"""or one part in so many of what the last step took: on a busy machine all takes longer."""
PATIENCE = 0.2
"""Seconds after which a sleeper looks around, unless it is woken."""

Item = TypeVar("Item", bound=Work | Piece)
Outcome = TypeVar("Outcome")


class BusyError(RuntimeError):
    """More texts are under way than the model was opened for."""


class CancelledError(Exception):
    """Thrown into steps whose caller does not want the rest."""


class Signal(Protocol):
    """What can tell that a text is not wanted any more, such as a `threading.Event`."""

    def is_set(self) -> bool:
        """Tell whether it is so."""


class Ticket:
    """The place of one text in the order of arrival."""

    def __init__(self, number: int, wake: threading.Event, cancel: Signal | None) -> None:
        self.number = number
        self.wake = wake
        self.thread = threading.get_ident()
        self.work: Work | None = None
        self._cancel = cancel
        self.returned = time.monotonic()
        """When its last work was finished, or it came."""
        self.is_quick = True
        """Whether it brought the one before soon, as far as is known."""

    @property
    def is_cancelled(self) -> bool:
        """Whether nobody wants it any more."""
        return self._cancel is not None and self._cancel.is_set()

    @property
    def is_ready(self) -> bool:
        """Whether there is nothing to wait for."""
        return self.work is None or self.work.finished or self.is_cancelled


class Scheduler:
    """Does the works of all texts of one engine. May be used by several threads."""

    def __init__(self, engine: Engine, max_batch: int = MAX_BATCH, max_requests: int = MAX_REQUESTS) -> None:
        self._engine = engine
        self.max_batch = max_batch
        self.max_requests = max_requests
        self._numbers = itertools.count()
        self.renew()
        _schedulers.add(self)

    def renew(self) -> None:
        """Forget all texts and who leads: for a forked child, where the other threads do not exist."""
        self._batch = self._engine.batch()
        self._leading = threading.RLock()
        self._lock = threading.RLock()
        """Guards what follows. Reentrant: a stream that nobody holds may be closed at any moment."""
        self._open: dict[int, Ticket] = {}
        self._waiting: dict[int, Ticket] = {}
        self._stepping: Sequence[Ticket] = ()
        self._arrival = threading.Event()
        self._grace = GRACE

    def run(self, steps: Generator[Work, None, Outcome]) -> Outcome:
        """Do all works of `steps`, and return what it returns.

        Raises:
            BusyError: if too many texts are under way.
        """
        pieces = self.stream(steps)
        try:
            while True:
                next(pieces)
        except StopIteration as end:
            outcome: Outcome = end.value
            return outcome

    def stream(
        self, steps: Generator[Work | Piece, None, Outcome], cancel: Signal | None = None
    ) -> Generator[Piece, None, Outcome]:
        """Do the works of `steps`, and give out its pieces.

        `steps` is closed in the end, when nobody is computing for it any more.

        Raises:
            BusyError: if too many texts are under way.
        """
        with closing(steps), self.ticket(threading.Event(), cancel) as ticket:
            try:
                item = next(steps)
                while True:
                    if isinstance(item, Piece):
                        yield item
                        item = next(steps)
                    else:
                        ticket.work = item
                        if len(self._open) == 1:
                            self._do_alone(ticket, item)
                        if not item.finished:
                            self.submit(ticket, item)
                            self.wait([ticket])
                        item = self.resume(ticket, steps)
            except StopIteration as end:
                outcome: Outcome = end.value
                return outcome

    @contextmanager
    def ticket(self, wake: threading.Event, cancel: Signal | None = None) -> Iterator[Ticket]:
        """Give a text its place; when it is given back, nobody is computing for it any more.

        Args:
            wake: wakes the thread that waits for it; tickets of one thread may share one.
            cancel: tells that the text is not wanted any more.

        Raises:
            BusyError: if too many texts are under way.
        """
        ticket = self._new_ticket(wake, cancel)
        try:
            yield ticket
        finally:
            try:
                self.withdraw(ticket)
            finally:
                with self._lock:
                    self._open.pop(ticket.number, None)
                self._arrival.set()

    def _new_ticket(self, wake: threading.Event, cancel: Signal | None) -> Ticket:
        with self._lock:
            if len(self._open) >= self.max_requests:
                raise BusyError(
                    f"model: {len(self._open)} texts are under way, which is the most it was opened for "
                    "(max_requests)"
                )
            ticket = Ticket(next(self._numbers), wake, cancel)
            self._open[ticket.number] = ticket
        return ticket

    def submit(self, ticket: Ticket, work: Work) -> None:
        """Hand in what a text needs next."""
        ticket.is_quick = time.monotonic() - ticket.returned < self._grace
        ticket.thread = threading.get_ident()
        ticket.work = work
        with self._lock:
            self._waiting[ticket.number] = ticket
        self._arrival.set()

    def wait(self, tickets: Sequence[Ticket]) -> None:
        """Compute, or wait for others who do, until one of `tickets` is ready. They share what wakes them."""
        wake = tickets[0].wake
        leads: bool | None = False
        try:
            while not any(ticket.is_ready for ticket in tickets):
                wake.clear()
                leads = None
                leads = self._leading.acquire(blocking=False)
                if leads:
                    self._step()
                    self._leading.release()
                elif not any(ticket.is_ready for ticket in tickets):
                    wake.wait(PATIENCE)
        finally:
            if leads is not False:
                self._give_up_lead()

    def _do_alone(self, ticket: Ticket, work: Work) -> None:
        """Do what `submit` and `wait` would, the short way, as long as nobody else comes."""
        leads: bool | None = None
        try:
            leads = self._leading.acquire(blocking=False)
            while leads and not (work.finished or self._waiting or ticket.is_cancelled):
                self._batch.step([(work, self._batch.pass_tokens)])
        finally:
            ticket.returned = time.monotonic()
            if leads is not False:
                self._give_up_lead()

    def _give_up_lead(self) -> None:
        """Let others lead, and wake those who have a turn."""
        # An interruption may come between any two lines; of a lock that is not held this is an error.
        with suppress(RuntimeError):
            self._leading.release()
        if self._waiting:
            with self._lock:
                for ticket in self._next():
                    ticket.wake.set()

    def resume(self, ticket: Ticket, steps: Generator[Item, None, object]) -> Item:
        """Let the steps of a ready ticket go on, up to what they give out next."""
        work = ticket.work
        if work is None or work.finished:
            ticket.work = None
            return next(steps)
        self.withdraw(ticket)
        return steps.throw(CancelledError())

    def withdraw(self, ticket: Ticket) -> None:
        """Give up the work of a text; a step that is computing for it is waited for."""
        work, ticket.work = ticket.work, None
        if work is None:
            return
        with self._lock:
            self._waiting.pop(ticket.number, None)
        interruption: KeyboardInterrupt | None = None
        while ticket in self._stepping and not self._nobody_leads():
            try:
                ticket.wake.clear()
                if ticket in self._stepping:
                    ticket.wake.wait(PATIENCE)
            except KeyboardInterrupt as error:
                interruption = error
        if not work.finished:
            work.abandon()
        if interruption is not None:
            raise interruption

    def _nobody_leads(self) -> bool:
        if self._leading.acquire(blocking=False):
            self._leading.release()
            return True
        return False

    def _step(self) -> None:
        """Do a step of the works that are there."""
        self._gather()
        with self._lock:
            chosen = self._next()
            works = [ticket.work for ticket in chosen if ticket.work is not None]
            self._stepping = chosen
        try:
            tokens = shares([work.left for work in works], self._batch.pass_tokens)
            start = time.monotonic()
            self._batch.step(list(zip(works, tokens, strict=True)))
            self._grace = max(GRACE, (time.monotonic() - start) / GRACE_SHARE)
        finally:
            self._stepping = ()
            self._give_back(chosen)

    def _next(self) -> list[Ticket]:
        """Return who has a turn."""
        found = [self._waiting.get(number) for number in sorted(self._waiting)[: self.max_batch]]
        return [ticket for ticket in found if ticket is not None]

    def _gather(self) -> None:
        """Wait a moment for texts that are likely to come."""
        me = threading.get_ident()
        while len(self._waiting) < min(len(self._open), self.max_batch):
            self._arrival.clear()
            now = time.monotonic()
            with self._lock:
                away = [t for t in list(self._open.values()) if t.number not in self._waiting]
            rests = [t.returned + self._grace - now for t in away if t.is_quick and t.thread != me]
            rest = max(rests, default=0.0)
            if rest <= 0:
                return
            self._arrival.wait(rest)

    def _give_back(self, tickets: Sequence[Ticket]) -> None:
        """Wake those whose works are finished, or that were waited for."""
        me, now = threading.get_ident(), time.monotonic()
        with self._lock:
            for ticket in tickets:
                if ticket.work is None or ticket.work.finished:
                    self._waiting.pop(ticket.number, None)
                    ticket.returned = now
                    if ticket.thread != me:
                        ticket.wake.set()


def shares(left: Sequence[int], most: int) -> list[int]:
    """Return how many tokens of each work go into a step.

    Args:
        left: tokens that each work has left, the oldest first.
        most: tokens of a step of prompts alone.

    Returns:
        The one token of those that decode. Prompts get `most` together, or `SLICE` if any text decodes: those
        that are done soonest first, but the oldest a part in any case.
    """
    prompts = sorted((tokens, index) for index, tokens in enumerate(left) if tokens > 1)
    if not prompts:
        return list(left)
    budget = most if len(prompts) == len(left) else min(most, SLICE)
    taken = [tokens if tokens <= 1 else 0 for tokens in left]
    oldest = min(index for _, index in prompts)
    taken[oldest] = min(left[oldest], max(budget // OLDEST_SHARE, 1))
    budget -= taken[oldest]
    for tokens, index in prompts:
        more = min(tokens - taken[index], budget)
        taken[index] += more
        budget -= more
    return taken


_schedulers: weakref.WeakSet[Scheduler] = weakref.WeakSet()


def _renew_all() -> None:
    for scheduler in list(_schedulers):
        scheduler.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)
