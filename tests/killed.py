"""Run, kill and go on, many times: prints one line of JSON. Started by ``test_resume.py`` as a process of its own.

Everything is imported here and nothing is computed: each run is a fork, so that it costs no imports, and a kill is
that of a whole process. Pages are written without their curves, whose drawing takes longer than all the rest.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path

import torch

import rcprobe
import rcprobe.report.html
from rcprobe.manifest import versions
from rcprobe.plugins import registry
from rcprobe.training import state

for name in (
    "nnsight",
    "pandas",
    "pyarrow.parquet",
    "rcprobe.runner",
    "rcprobe_plugins.models.radd",
    "safetensors.torch",
):
    import_module(name)

OPTIONS = {"width": 16, "max_length": 4, "dropout": 0.1}  # dropout draws from the global random numbers


def run(folder, metrics, train, seeds, before):
    """What is killed; the digest of its report goes to a file beside the folder."""
    before()
    torch.manual_seed(random.SystemRandom().randrange(2**31))  # a stranger's state must not matter
    facts = rcprobe.load_dataset("letters", {"length": 3}).limited(3)
    m = rcprobe.load("radd", options=OPTIONS)
    report = rcprobe.run(m, facts, metrics=metrics, train=train, seeds=seeds, out=folder)
    seen = hashlib.sha256(json.dumps(report.to_dict()).encode())
    frame = report.frame()
    for column in frame:
        seen.update(repr(frame[column].tolist()).encode())
    folder.with_suffix(".digest").write_text(seen.hexdigest())


class Trial:
    """Runs of one kind, each in a process that is forked for it."""

    def __init__(self, place, *, steps, seeds, metrics):
        self.place, self.seeds, self.metrics = place, seeds, metrics
        self.train = rcprobe.TrainConfig(steps=steps, probe_every=8, batch_size=8, warmup=5)
        start = time.monotonic()
        self.unbroken = self.digest(place / "unbroken")
        self.lasts = time.monotonic() - start

    def start(self, folder, before=lambda: None):
        pid = os.fork()
        if pid:
            return pid
        code = 1
        try:
            run(folder, self.metrics, self.train, self.seeds, before)
            code = 0
        finally:
            if code:
                traceback.print_exc()
            os._exit(code)

    def digest(self, folder):
        """Give the command again, and see what comes out."""
        code = ended(self.start(folder))
        return folder.with_suffix(".digest").read_text() if code == 0 else f"exit code {code}"


def ended(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def side_by_side(function, numbers):
    with ThreadPoolExecutor(2) as lanes:
        return list(lanes.map(function, numbers))


def at_random(place, times):
    """Kill at random moments of the time that an unbroken run takes."""
    trial = Trial(place, steps=16, seeds=2, metrics=["storage", "reverse_probability"])
    draw = random.Random(0)
    moments = [draw.uniform(0.1, 1.0) * trial.lasts for _ in range(times)]

    def one(i):
        folder, killed = place / f"random-{i}", False
        while not killed:  # one that ended before its moment came is killed earlier
            shutil.rmtree(folder, ignore_errors=True)
            pid = trial.start(folder)
            time.sleep(moments[i])
            os.kill(pid, signal.SIGKILL)  # one that has ended is still there to be waited for
            killed = ended(pid) == -signal.SIGKILL
            moments[i] *= 0.8
        found = {
            "steps": len(list(folder.glob("seed-*/step-*/done.json"))),
            "states": len(list(folder.glob("seed-*/state-*/done.json"))),
        }
        return {**found, "same": trial.digest(folder) == trial.unbroken}

    return {"lasts": trial.lasts, "runs": side_by_side(one, range(times))}


def at_every_rename(place, every):
    """Kill just before, or just after, a file gets its name: each time another file."""
    trial = Trial(place, steps=8, seeds=1, metrics=["reverse_probability"])
    renames = sum(path.is_file() for path in (place / "unbroken").rglob("*"))  # and more: states come and go

    def one(n):
        folder, replace, done = place / f"rename-{n}", os.replace, 0

        def deadly(source, target):
            nonlocal done
            done += 1
            if done == n // 2 and n % 2:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(source, target)
            if done == n // 2:
                os.kill(os.getpid(), signal.SIGKILL)

        def before():
            os.replace = deadly

        killed = ended(trial.start(folder, before)) == -signal.SIGKILL
        return {"killed": killed, "same": not killed or trial.digest(folder) == trial.unbroken}

    return {"lasts": trial.lasts, "runs": side_by_side(one, range(2, 2 * renames, every))}


def main():
    place, what, number = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    state.KEEP_EVERY, state.KEEP_SHARE = 0.0, 0.5  # as often as can be
    torch.set_num_threads(1)
    rcprobe.report.html.panel_svg = lambda panel, key, label: "<svg></svg>"
    registry(), versions()
    print(json.dumps(globals()[what](place, number)))


if __name__ == "__main__":
    main()
