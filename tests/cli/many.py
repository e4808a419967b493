"""Several command lines in one process, for a test user: JSON lists of words in, status and stderr of each out."""

import contextlib
import io
import json
import sys

from qra_bo.cli.app import main
from qra_bo.runs import main as runs

if __name__ == "__main__":
    results = []
    for words in json.loads(sys.argv[1]):
        said = io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            status = runs(words[1:]) if words[0] == "runs" else main(words)
        results.append([status, said.getvalue()])
    print(json.dumps(results))
