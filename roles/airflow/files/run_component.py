"""Runs a component of Airflow and ends without Python's own clean-up.

That takes the memory of all of Airflow apart, object by object: 3 s, and 15 on a busy host, in which an API server
answers nobody, keeps connections open that it will never serve, and its successor waits.
"""

from __future__ import annotations

import atexit
import os
import sys
import traceback

from airflow.__main__ import main

if __name__ == "__main__":
    code = 0
    try:
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
