"""Programs on Triton kernels, for tests: a process of their own, as Triton reads how to run when it is imported."""

import os
import subprocess
import sys

import pytest


def run_with_triton(code: str, interpret: str) -> None:
    """Run a program in Triton's interpreter (``"1"``) or with its compiler (``"0"``); it has to end well."""
    pytest.importorskip("triton")
    subprocess.run([sys.executable, "-c", code], check=True, timeout=600,
                   env={**os.environ, "TRITON_INTERPRET": interpret})
