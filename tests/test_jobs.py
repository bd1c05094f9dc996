"""Workers beside the process that trains."""

import os
import subprocess
import sys
import time

KEEPS_WORKING = """
import os, time
from rcprobe_plugins.studies import jobs
jobs.PRELOAD = []
if __name__ == "__main__":
    with jobs.workers(1) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        time.sleep(600)
"""


def alive(number):
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return True


def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    script = tmp_path / "works.py"
    script.write_text(KEEPS_WORKING, encoding="utf-8")
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as parent:
        worker = int(parent.stdout.readline())
        assert alive(worker)
        parent.kill()
    end = time.monotonic() + 30
    while alive(worker) and time.monotonic() < end:
        time.sleep(0.05)
    assert not alive(worker)
