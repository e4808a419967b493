"""Before anything is imported: what tests cache is theirs alone, and goes when they end."""

import atexit
import os
import shutil
import tempfile

if "PYTEST_XDIST_WORKER" not in os.environ:  # workers inherit the folder
    os.environ["QRA_BO_CACHE"] = tempfile.mkdtemp(prefix="qra_bo-tests-")
    atexit.register(shutil.rmtree, os.environ["QRA_BO_CACHE"], ignore_errors=True)
