"""Bring up a stack of its own, run the examples on it as a user would, take it down.

make demo                            on this machine
flux start --test-size=2 make demo   inside a Flux instance: the endpoint uses Flux
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

EXAMPLES = ("executor_basic_example.py", "executor_collatz.py", "shell_function.py")
HERE = Path(__file__).resolve().parent
SHOWN_LINES = 8
START_TIMEOUT = 180
EXAMPLE_TIMEOUT = 60


def title(text):
    print(f"\n== {text}", flush=True)


def start_stack(environment):
    """Start `flux-endpoint up`; return it, the thread that shows what it says, and an event: it is ready or has ended."""
    up = subprocess.Popen(
        [sys.executable, "-m", "flux_endpoint", "up"],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    ready = threading.Event()

    def show():
        for line in up.stdout:
            with contextlib.suppress(OSError):
                print(f"   {line}".rstrip(), flush=True)
            if line.rstrip().endswith("ends it."):  # its last word when all is up
                ready.set()
        ready.set()  # or it has ended

    shower = threading.Thread(target=show)
    shower.start()
    return up, shower, ready


def run_example(script, endpoint_id, environment):
    """Run one example; print what it printed, a long middle left out. Return whether it went well."""
    title(f"FLUX_ENDPOINT_ID={endpoint_id} python examples/{script}")
    begun = time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, HERE / script],
            env={**environment, "FLUX_ENDPOINT_ID": endpoint_id},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=EXAMPLE_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        print(f"   [FAILED: no end after {EXAMPLE_TIMEOUT} s]", flush=True)
        return False
    lines = done.stdout.splitlines()
    if done.returncode == 0 and len(lines) > 2 * SHOWN_LINES:
        left_out = len(lines) - SHOWN_LINES
        middle = SHOWN_LINES // 2
        lines[middle:-middle] = [f"… {left_out} lines more …"]
    for line in lines:
        print(f"   {line if len(line) <= 100 else line[:97] + '…'}".rstrip())
    seconds = time.monotonic() - begun
    outcome = "done" if done.returncode == 0 else f"FAILED with exit status {done.returncode}"
    print(f"   [{outcome}, {seconds:.1f} s]", flush=True)
    return done.returncode == 0


def demo(home):
    environment = {**os.environ, "FLUX_ENDPOINT_HOME": str(home), "PYTHONUNBUFFERED": "1"}
    for name in ("FLUX_ENDPOINT_SERVICE_URL", "FLUX_ENDPOINT_TOKEN"):
        environment.pop(name, None)  # of a service that is not the demo's
    title("flux-endpoint up")
    up, shower, ready = start_stack(environment)
    try:
        if not ready.wait(START_TIMEOUT) or up.poll() is not None:
            return 1
        state = json.loads((home / "stack" / "state.json").read_text())
        good = [run_example(script, state["endpoint_id"], environment) for script in EXAMPLES]
    finally:
        title("taking everything down")
        up.terminate()
        status = up.wait()
        shower.join()
    if not all(good) or status != 0:
        print(f"\nThe demo FAILED (examples: {good.count(False)}, up: exit status {status}).")
        return 1
    print("\nThe demo went well: all of them gave their results, and nothing is left running.")
    return 0


def main():
    begun = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    home = Path(tempfile.mkdtemp(prefix="flux-endpoint-demo-"))
    status = None
    try:
        status = demo(home)
    except KeyboardInterrupt:
        print("\nInterrupted; everything is down.")
        status = 130
    finally:
        if status == 1:
            print(f"The logs are kept: {home}/stack/*.log {home}/endpoints/*/*.log")
        else:
            shutil.rmtree(home, ignore_errors=True)
    print(f"[{time.monotonic() - begun:.1f} s]")
    return status


if __name__ == "__main__":
    sys.exit(main())
