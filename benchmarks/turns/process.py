"""A process that answers requests, a line of JSON each way, and is told the next one when its turn comes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any


class Unavailable(Exception):  # noqa: N818 (not an error: the table says it)
    """Why a contestant can not run here."""


class Process:
    """``python -m MODULE ARGUMENTS``, which runs ``answer_requests``, under this interpreter or another."""

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        python: str = sys.executable,
    ) -> None:
        self._errors = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [python, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=dict(environment),
        )

    def send(self, request: Mapping[str, Any]) -> None:
        """Send a request; ``receive`` waits for its answer. One that is dead is found out there."""
        assert self._process.stdin is not None
        try:
            print(json.dumps(request), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            pass

    def receive(self) -> dict[str, Any]:
        """The answer; of a process that died its last words, as ``unavailable``."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"unavailable": self._last_words()}
        return answer

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """``send``, then ``receive``."""
        self.send(request)
        return self.receive()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        self._errors.close()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:
                pass  # it had died

    def _last_words(self) -> str:
        status = self._process.wait()
        if status == -9:
            return "killed: it wanted more memory than there is"
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return f"failed: {lines[-1] if lines else f'exit status {status}'}"


def answer_requests(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> int:
    """In the process: answer requests until there are no more; why one can not be answered is an answer too."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    for line in sys.stdin:
        try:
            found = answer(json.loads(line))
        except Unavailable as reason:
            found = {"unavailable": str(reason)}
        except (RuntimeError, MemoryError) as error:
            found = {"unavailable": f"failed: {(str(error).strip() or type(error).__name__).splitlines()[0]}"}
        print(json.dumps(found), file=answers, flush=True)
    return 0
