"""What the machine is like on which an endpoint's tasks run."""

from typing import Final

NAME: Final = "hardware_report"

#: Sent as text: an endpoint of any make, with any Python 3, runs it without this package.
SOURCE: Final = '''
def hardware_report():
    """Tell of the node that runs this: system, Python, processors, memory, disk, gpus."""
    import os
    import platform
    import shutil
    import subprocess

    lines = [
        ("Host", platform.node()),
        ("System", platform.platform()),
        ("Python", platform.python_implementation() + " " + platform.python_version()),
        ("Processor", platform.processor() or platform.machine()),
        ("Processors", "%s, %s for this task" % (os.cpu_count(), len(os.sched_getaffinity(0)))),
    ]
    page = os.sysconf("SC_PAGE_SIZE")
    memory = [page * os.sysconf("SC_%s_PAGES" % name) / 2**30 for name in ("PHYS", "AVPHYS")]
    lines.append(("Memory", "%.1f GiB, %.1f GiB free" % tuple(memory)))
    disk = shutil.disk_usage(os.getcwd())
    text = "%.1f GiB, %.1f GiB free, at %s"
    lines.append(("Disk", text % (disk.total / 2**30, disk.free / 2**30, os.getcwd())))
    for command in (["nvidia-smi", "-L"], ["rocm-smi", "--showproductname"]):
        if shutil.which(command[0]):
            said = subprocess.run(command, capture_output=True, text=True, timeout=30)
            lines += [("Gpu", line.strip()) for line in said.stdout.splitlines() if line.strip()]
    return "\\n".join("%11s: %s" % line for line in lines)
'''
