"""How long users of the API wait and whether they are refused, while something happens to the platform."""

from __future__ import annotations

import itertools
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

TIMEOUT = 90.0


@dataclass
class Seen:
    """Probes in the order of their end: (asked, answered, what went wrong or nothing)."""

    probes: list[tuple[float, float, str]] = field(default_factory=list)

    @property
    def failures(self) -> list[str]:
        """What users saw in place of an answer."""
        return [wrong for _, _, wrong in self.probes if wrong]

    @property
    def slowest(self) -> float:
        """Longest time that an answer took, in seconds."""
        return max(end - begin for begin, end, wrong in self.probes if not wrong)

    @property
    def gap(self) -> float:
        """Longest time without any answer, in seconds."""
        ends = sorted(end for _, end, wrong in self.probes if not wrong)
        return max((after - before for before, after in itertools.pairwise(ends)), default=TIMEOUT)

    def __str__(self) -> str:
        return (
            f"{len(self.probes)} probes, {len(self.failures)} failed ({', '.join(sorted(set(self.failures)))}), "
            f"slowest answer {self.slowest:.1f} s, longest gap {self.gap:.1f} s"
        )


@contextmanager
def probed(urls: Sequence[str], hertz: float = 5) -> Iterator[dict[str, Seen]]:
    """Ask each URL all the time, without waiting for the answer before; complete when the block is over."""
    seen = {url: Seen() for url in urls}
    threads: list[threading.Thread] = []
    over = threading.Event()

    def ask(url: str) -> None:
        begin, wrong = time.monotonic(), ""
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
                answer.read()
        except OSError as error:
            wrong = str(error)
        seen[url].probes.append((begin, time.monotonic(), wrong))

    def clock() -> None:
        while not over.wait(1 / hertz):
            for url in urls:
                threads.append(threading.Thread(target=ask, args=(url,)))
                threads[-1].start()

    ticking = threading.Thread(target=clock)
    ticking.start()
    try:
        yield seen
    finally:
        over.set()
        ticking.join()
        for thread in threads:
            thread.join()
