"""Freed memory is kept where the C library can."""

import platform
import subprocess
import sys


def test_freed_memory_is_kept():
    code = "from deftonnx.allocation import keep_freed_memory; print(keep_freed_memory())"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == str(platform.libc_ver()[0] == "glibc")
