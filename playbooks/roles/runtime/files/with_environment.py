"""Runs a command with more environment variables, read as a JSON object from standard input.

So they reach the node without being on anybody's command line: an index URL may hold a password.
"""

from __future__ import annotations

import json
import os
import sys

if __name__ == "__main__":
    variables = {name: str(value) for name, value in json.load(sys.stdin).items()}
    os.execvpe(sys.argv[1], sys.argv[1:], {**os.environ, **variables})  # noqa: S606 - no shell is wanted
