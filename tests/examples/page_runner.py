"""Runs programs that it reads, one a line, each in a fork: all need the same imports."""

import json
import os
import runpy
import sys

from flux_endpoint import Client, Executor, MPIFunction, ShellFunction, progress  # noqa: F401

for line in sys.stdin:
    program, directory, output, errors = json.loads(line)
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
        continue
    os.chdir(directory)
    for number, path in enumerate((os.devnull, output, errors)):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), number)
    sys.argv = [program]
    sys.path[0] = directory
    runpy.run_path(program, run_name="__main__")
    break
