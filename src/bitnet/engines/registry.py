"""The models loaded in this process. Who uses one has a lease; who asks for one that is there shares it.

An engine is closed once nobody has a lease on it and its keep-alive is over. Nothing here knows how a model
is loaded.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import math
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from bitnet.engines import Engine
from bitnet.engines.generation import Generation, abandon
from bitnet.errors import EngineClosedError, ModelNotFoundError
from bitnet.values import Request

_Key = tuple[object, ...]


class _Entry:
    """A model that is loaded, or will be once somebody needs it.

    lock: held while it is loaded and closed. holders: one token for each lease.
    keep_until: in seconds of time.monotonic. dropped: it is closed, or about to be; nobody gets it any more.
    """

    def __init__(self, load: Callable[[], Engine], key: _Key | None = None) -> None:
        self.load = load
        self.key = key
        self.lock = threading.Lock()
        self.engine: Engine | None = None
        self.holders: set[object] = set()
        self.keep_until = 0.0
        self.timer: threading.Timer | None = None
        self.dropped = False
        _all_entries.add(self)


# Guards the fields of all entries and leases; never held while something is loaded, closed or waited for.
_lock = threading.Lock()
_entries: dict[_Key, _Entry] = {}
_all_entries: weakref.WeakSet[_Entry] = weakref.WeakSet()
# Leases that were garbage collected: that may happen anywhere, also while this very thread holds the lock.
_lost: deque[tuple[_Entry, object, float]] = deque()


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    with _lock:
        yield
    _collect()


def _collect() -> None:
    """Give back the lost leases, unless somebody holds the lock, who will do so afterwards."""
    while _lost and _lock.acquire(blocking=False):
        unused = []
        try:
            while _lost:
                entry, holder, keep_alive = _lost.popleft()
                _give_back(entry, holder, keep_alive)
                if entry.dropped:
                    unused.append(entry)
        finally:
            _lock.release()
        for entry in unused:
            _close(entry)


def _lose(entry: _Entry, holder: object, keep_alive: float) -> None:
    _lost.append((entry, holder, keep_alive))
    _collect()


class Lease:
    """The right to use an engine, shared with others who asked for the same model and options.

    Garbage collection gives it back, but a lease lives as long as a Generation that came out of it.
    """

    def __init__(self, entry: Callable[[object], _Entry], keep_alive: float) -> None:
        """Use `of_file` and `of_engine`. entry: finds an entry and adds this holder to it."""
        self._find_entry = entry
        self._keep_alive = keep_alive
        self._closed = False
        self._generations: weakref.WeakSet[Generation] = weakref.WeakSet()
        holder = object()
        self._connect(holder, entry(holder))
        _watch_exit()

    @classmethod
    def of_file(
        cls, load: Callable[..., Engine], path: Path, options: Mapping[str, Any], keep_alive: float
    ) -> Lease:
        """A lease on `load(path, **options)`, which is called when the engine is first needed.

        keep_alive: seconds it stays loaded after the last lease is given back; negative = for ever.
        """
        return cls(lambda holder: _entry_of_file(load, path, options, holder), keep_alive)

    @classmethod
    def of_server(cls, load: Callable[..., Engine], options: Mapping[str, Any], keep_alive: float) -> Lease:
        """A lease on `load(**options)`, shared by those who have the same options; they must be hashable."""
        key = (load, *sorted(options.items(), key=lambda item: item[0]))
        return cls(lambda holder: _shared_entry(key, lambda: load(**options), holder), keep_alive)

    @classmethod
    def of_engine(cls, engine: Engine) -> Lease:
        """A lease on an engine of the caller's own, which is closed with the last copy of the lease."""
        entry = _Entry(lambda: engine)
        entry.engine = engine

        def add(holder: object) -> _Entry:
            with _locked():
                entry.holders.add(holder)
            return entry

        return cls(add, 0)

    def copy(self) -> Lease:
        """Another lease on the same."""
        return Lease(self._find_entry, self._keep_alive)

    def _connect(self, holder: object, entry: _Entry) -> None:
        self._holder, self._entry = holder, entry
        self._finalizer = weakref.finalize(self, _lose, entry, holder, self._keep_alive)
        self._finalizer.atexit = False  # see _watch_exit

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def loaded(self) -> Engine | None:
        """The engine, also a closed one, for what can be known without computing; None = never loaded."""
        return self._entry.engine

    @property
    def ready(self) -> bool:
        """Whether `engine` has nothing to load."""
        return self._entry.engine is not None and not self._entry.dropped

    def engine(self) -> Engine:
        """The engine, loaded if it is not. Raises EngineClosedError, and what loading raises."""
        while True:
            with _locked():
                if self._closed or _exiting:
                    raise EngineClosedError("the model is closed; load it again")
                entry = self._entry
            if not entry.dropped:
                with entry.lock:
                    if not entry.dropped:
                        if entry.engine is None:
                            entry.engine = entry.load()
                        if not entry.engine.health().closed:
                            return entry.engine
            # It was unloaded, or stopped because of a defect. The lease is on the file: begin again.
            self._reconnect(entry)

    def _reconnect(self, old: _Entry) -> None:
        if old.key is None:
            raise EngineClosedError("the engine is closed; make another one")
        with _locked():
            _drop(old)
        holder = object()
        entry = self._find_entry(holder)
        with _locked():
            if self._entry is old and not self._closed:
                self._finalizer.detach()
                self._connect(holder, entry)
            else:  # another thread was faster
                _lost.append((entry, holder, 0))

    def submit(self, request: Request) -> Generation:
        generation = self.engine().submit(request)
        generation.owner = self
        with _locked():
            self._generations.add(generation)
            closed = self._closed
        if closed:
            abandon(generation, _closed_early())
        return generation

    def submits_at_once(self, request: Request) -> bool:
        """Whether `submit` neither loads nor waits, so that an event loop may call it."""
        entry = self._entry
        engine = entry.engine
        if engine is None or entry.dropped or entry.lock.locked():
            return False
        return engine.submits_at_once(request)

    def close(self) -> None:
        """Give the lease back; its generations end with EngineClosedError. May be repeated."""
        with _locked():
            self._closed = True
            self._finalizer.detach()
            entry = self._entry
            _give_back(entry, self._holder, self._keep_alive)
            generations = list(self._generations)
            self._generations.clear()
        for generation in generations:
            abandon(generation, _closed_early())
        if entry.dropped:
            _close(entry)


def _closed_early() -> EngineClosedError:
    return EngineClosedError("the model was closed before the answer was complete")


def _entry_of_file(
    load: Callable[..., Engine], path: Path, options: Mapping[str, Any], holder: object
) -> _Entry:
    try:
        real = os.path.realpath(path)
        stat = os.stat(real)
    except OSError as error:
        raise ModelNotFoundError(f"cannot read the model file {path}: {error.strerror}") from None
    identity = (real, stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)
    key = (load, *identity, *sorted(options.items()))
    return _shared_entry(key, lambda: load(path, **options), holder)


def _shared_entry(key: _Key, load: Callable[[], Engine], holder: object) -> _Entry:
    with _locked():
        entry = _entries.get(key)
        if entry is None:
            entry = _entries[key] = _Entry(load, key)
        entry.holders.add(holder)
        if entry.timer is not None:
            entry.timer.cancel()
            entry.timer = None
    return entry


def _give_back(entry: _Entry, holder: object, keep_alive: float) -> None:
    """With the lock. If that drops the entry, it must be closed without the lock."""
    if entry.dropped or holder not in entry.holders:
        return
    entry.holders.remove(holder)
    now = time.monotonic()
    entry.keep_until = max(entry.keep_until, math.inf if keep_alive < 0 else now + keep_alive)
    if entry.holders:
        return
    if entry.keep_until <= now or entry.engine is None:
        _drop(entry)
    elif entry.keep_until < math.inf:
        seconds = min(entry.keep_until - now, threading.TIMEOUT_MAX)
        entry.timer = threading.Timer(seconds, _expire, (entry,))
        entry.timer.name = "bitnet-keep-alive"
        entry.timer.daemon = True
        entry.timer.start()


def _expire(entry: _Entry) -> None:
    with _locked():
        if entry.timer is not threading.current_thread() or entry.dropped:
            return
        _drop(entry)
    _close(entry)


def _drop(entry: _Entry) -> None:
    """With the lock."""
    entry.dropped = True
    if entry.timer is not None:
        entry.timer.cancel()
        entry.timer = None
    if entry.key is not None and _entries.get(entry.key) is entry:
        del _entries[entry.key]


def _close(entry: _Entry) -> None:
    with entry.lock:  # waits, should it be loading
        if entry.engine is not None:
            entry.engine.close()


def unload_all() -> None:
    """Free the memory of every loaded model now, whoever uses it, and also those that are kept alive.

    Generations under way end with EngineClosedError. A BitNet that was not closed loads its model again when
    it is used.
    """
    with _locked():
        entries = list(_entries.values())
        for entry in entries:
            _drop(entry)
    for entry in entries:
        _close(entry)


_exiting = False


@functools.cache
def _watch_exit() -> None:
    """Called once, after the first finalizer was made: what is registered last runs first.

    An engine that a daemon thread loads while all others are being closed would never be closed itself.
    """
    atexit.register(_at_exit)


def _at_exit() -> None:
    global _exiting
    _exiting = True
    unload_all()


def _after_fork() -> None:
    """In the child: locks and timers of threads that are not here. Engines look after themselves."""
    global _lock
    _lock = threading.Lock()
    for entry in list(_all_entries):
        entry.lock = threading.Lock()
        entry.timer = None
        if not entry.holders and entry.keep_until < math.inf:
            _drop(entry)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
