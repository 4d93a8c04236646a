"""Cases of a runtime and their outcomes, which `run` reads from stdout, a line each."""

import contextlib
import signal
import sys
import time
import traceback


class Failed(Exception):
    """Something is not as it should be; the text says what."""


class Skipped(Exception):
    """The case does not apply here; the text says why."""


def expect(is_so, *sentence):
    """Fails with the sentence, whose parts may be anything, unless it is so."""
    if not is_so:
        raise Failed(" ".join(str(part) for part in sentence))


def expect_equal(what, have, want):
    """Fails, naming what it is, unless both are equal."""
    expect(have == want, f"{what}: wanted {want!r}, found {have!r}")


def eventually(observe, seconds=5):
    """Calls until there is no failure any more, and returns the answer; the last failure, if that takes too long."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return observe()
        except Failed:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.05)


@contextlib.contextmanager
def timed(what):
    """Says so if what is done within takes long: a machine that is busy, or something that waits for its deadline."""
    began = time.monotonic()
    try:
        yield
    finally:
        seconds = time.monotonic() - began
        if seconds > 7:
            print("say", f"{seconds:.1f} s for {what}", sep="\t", flush=True)


class Suite:
    """The cases of one runtime, in the order in which they are to run."""

    def __init__(self, only, program, version, seconds_per_case=120):
        self._only = only
        self._seconds_per_case = seconds_per_case
        self._failed = 0
        self._cases = []
        print("version", f"{program} {version}", sep="\t", flush=True)

    def case(self, name, body, *arguments):
        """Adds a case, unless it is filtered out."""
        if self._only in name:
            self._cases.append((name, body, arguments))

    def wanted(self):
        """Whether any case has been added."""
        return bool(self._cases)

    def run(self, after_each=lambda: None):
        """Runs all cases. What is called after each is part of it, also if it has failed."""
        signal.signal(signal.SIGALRM, _out_of_time)
        for name, body, arguments in self._cases:
            started = time.monotonic()
            said = []
            outcome = "passed"
            for step in (lambda: body(*arguments), after_each):
                signal.alarm(self._seconds_per_case)
                try:
                    step()
                except Skipped as skipped:
                    outcome = "skipped"
                    said.append(str(skipped))
                except Failed as failure:
                    outcome = "failed"
                    said.append(str(failure))
                except Exception:  # Whatever it is, the other cases are still to run.
                    outcome = "failed"
                    said.append(traceback.format_exc())
                finally:
                    signal.alarm(0)
            self.tell(outcome, name, time.monotonic() - started, "\n".join(said))
        self._cases = []

    def tell(self, outcome, name, seconds, details=""):
        """Prints an outcome: case, milliseconds, details, between tabs."""
        self._failed += outcome == "failed"
        details = details.replace("\\", "\\\\").replace("\n", "\\n").replace("\t", " ")
        print(outcome, name, round(seconds * 1000), details, sep="\t", flush=True)

    @staticmethod
    def say(text):
        """Prints what is no outcome."""
        for line in text.splitlines():
            print("say", line, sep="\t", flush=True)

    def end(self):
        """Ends the program with the status of the outcome. Whoever has not said so has not come that far."""
        print("end", flush=True)
        sys.exit(1 if self._failed else 0)


def _out_of_time(_signal, _frame):
    raise Failed("it took too long")
