"""A process of its own for each candidate, pinned before it imports anything heavy.

A worker waits on its pipe, asleep, until it is asked; so candidates run one at a time.
"""

import dataclasses
import json
import os
import subprocess
import sys
import time

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
# Where a machine pins them for an old OpenBLAS, they slow NumPy's own.
DROPPED = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")


class Failure(Exception):
    """A worker could not do what it was asked for."""


class Worker:
    """The parent's side.

    Args:
      name: of a candidate, or "limits".
      cores: how many of this process's cores it may use, the first of them.
    """

    def __init__(self, name: str, cores: int):
        self.name = name
        allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        environment = {k: v for k, v in os.environ.items() if k not in DROPPED}
        environment |= dict.fromkeys(THREADS, str(cores))
        environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # several processes may share a GPU
        self._process = subprocess.Popen(
            [sys.executable, __file__, name, *map(str, allowed[:cores])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
        )

    def ask(self, what: str, *args):
        """The answer of a method of `Served`, or of a function of `limits`."""
        try:
            print(json.dumps([what, args], default=dataclasses.asdict), file=self._process.stdin)
            self._process.stdin.flush()
            done, answer = json.loads(self._process.stdout.readline())
        except (json.JSONDecodeError, BrokenPipeError):
            status = self._process.wait()
            raise Failure(f"{self.name}: its process ended with status {status}") from None
        if not done:
            raise Failure(f"{self.name}: {answer}")
        return answer

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()


class Served:
    """The worker's side of a candidate."""

    def __init__(self, name: str):
        import peers

        self._module = peers.load(name)
        self._candidate = None

    def about(self) -> dict:
        """Where it runs, and which kinds of workload."""
        return {"device": self._module.device(), "workloads": self._module.WORKLOADS}

    def prepare(self, workload) -> dict:
        """Makes a workload the current one."""
        self._candidate = None
        started = time.perf_counter()
        self._candidate = self._module.prepare(workload)
        seconds = time.perf_counter() - started
        return {
            "seconds": seconds,
            "batch": self._candidate.batch,
            "choices": self._candidate.choices,
        }

    def run(self, trials: int, seed: int) -> dict:
        """Runs at least so many trials, in whole batches, and times them."""
        import numpy as np

        trials = -(-trials // self._candidate.batch) * self._candidate.batch
        wall, cpu = time.perf_counter(), time.process_time()
        found = self._candidate.run(trials, seed)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        medians = {name: float(np.median(values)) for name, values in found.items()}
        return {"trials": trials, "wall": wall, "cpu": cpu, "medians": medians}


def serve(name: str) -> None:
    """Answers until the pipe is closed."""
    from peers import Workload

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    served = __import__("limits") if name == "limits" else Served(name)
    for line in sys.stdin:
        what, args = json.loads(line)
        args = [Workload(**value) if isinstance(value, dict) else value for value in args]
        try:
            answer = True, getattr(served, what)(*args)
        except Exception as error:
            answer = False, " ".join(f"{type(error).__name__}: {error}".split())
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    if places := [int(text) for text in sys.argv[2:]]:
        os.sched_setaffinity(0, places)
    serve(sys.argv[1])
