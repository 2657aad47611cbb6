"""Lets commits of `behemoth run` hang while the file that BEHEMOTH_HANG names is there, as on a mount that is gone.

Every Python below a test with this folder first imports it. A commit gets its name by `os.link`; while one hangs there
is a file of the flag's name and `ing`.
"""

import os
import sys
import time

flag = os.environ.get("BEHEMOTH_HANG", "")
if flag and "/behemoth run " in " ".join(sys.orig_argv):
    real = os.link

    def link(*args, **kwargs):  # type: ignore[no-untyped-def]
        while os.path.exists(flag):
            os.close(os.open(f"{flag}ing", os.O_CREAT))
            time.sleep(0.05)
        return real(*args, **kwargs)

    os.link = link
