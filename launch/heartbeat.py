"""Run a command, and say that it is still running whenever it has been silent for a while.

python launch/heartbeat.py "installing" pip install ...
"""

import os
import subprocess
import sys
import time
from selectors import EVENT_READ, DefaultSelector

SILENCE_SECONDS = 8.0


def main() -> int:
    """Pass the command's output on as it comes; return its exit code."""
    what, *command = sys.argv[1:]
    began = time.monotonic()
    print(f"{what} ...", flush=True)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    selector = DefaultSelector()
    selector.register(process.stdout, EVENT_READ)
    while True:
        if not selector.select(timeout=SILENCE_SECONDS):
            print(f"{what} ... {time.monotonic() - began:.0f} s", flush=True)
            continue
        output = os.read(process.stdout.fileno(), 65536)
        if not output:
            return process.wait()
        sys.stdout.buffer.write(output)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    sys.exit(main())
