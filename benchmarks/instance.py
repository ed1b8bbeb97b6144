"""Starts a Flux instance for a benchmark."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def instance(nodes: int, cores: int, gpus: int = 0) -> Iterator[str]:
    """Run a Flux instance with virtual resources; yields its URI.

    Args:
        nodes: number of brokers, all of them on this machine.
        cores: number of cores of each node.
        gpus: number of gpus of each node.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("FLUX_", "PMI_"))}
    with tempfile.TemporaryDirectory() as directory:
        counts = {"ranks": nodes, "cores": cores, "gpus": gpus}
        ids = {name: ",".join(map(str, range(count))) for name, count in counts.items() if count}
        encode = ["flux", "R", "encode", *(f"--{name}={value}" for name, value in ids.items())]
        resources = Path(directory, "R.json")
        resources.write_bytes(subprocess.run(encode, capture_output=True, check=True).stdout)
        Path(directory, "resource.toml").write_text(
            f'[resource]\nnoverify = true\npath = "{resources}"\n'
        )
        start = ["flux", "start", f"--test-size={nodes}", f"--config-path={directory}"]
        program = ["sh", "-c", 'echo "$FLUX_URI"; cat > /dev/null']
        with subprocess.Popen(
            [*start, *program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            uri = process.stdout.readline().strip()
            if not uri:
                sys.exit(f"`flux start` ended with status {process.wait()}")
            yield uri
            process.stdin.close()
