"""Attempts at trials without Ray, each a process of its own that may be killed: `attempts.py RUN`.

Reads lines `NUMBER SECONDS PLAN_FILE`, kills the attempt after so many seconds, and says `ended CODE SECONDS`. Forking
from a process that has imported and exported once makes an attempt cost a second instead of ten.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import torch

from admm.plan import PruningPlan
from search.bench import open_bench
from search.shapes_file import shapes_onnx
from search.store import RunStore
from search.trial import TrialSpec
from search.worker import TrialRun


def main() -> None:
    """Serve until standard input ends."""
    torch.set_num_threads(1)
    store = RunStore.open(Path(sys.argv[1]))
    bench = open_bench(store)
    # forward only: autograd's threads do not survive a fork
    shapes_onnx(bench.dense, bench.profile.groups, PruningPlan(), bench.task.example_input, 1)
    print("ready", flush=True)
    for line in sys.stdin:
        number, seconds, plan = line.strip().split(" ", 2)
        spec = TrialSpec(number=int(number), plan=PruningPlan.from_json(Path(plan).read_text()), params={}, seed=3)
        began = time.monotonic()
        pid = os.fork()
        if pid == 0:
            run = TrialRun(bench, spec, store=store)
            while run.result is None:
                run.step()
            os._exit(0)
        end = began + float(seconds)
        while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None and time.monotonic() < end:
            time.sleep(0.002)
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        print(f"ended {os.waitstatus_to_exitcode(status)} {time.monotonic() - began:.3f}", flush=True)


if __name__ == "__main__":
    main()
