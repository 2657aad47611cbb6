"""`dcp.clearing_program STORE`: another process clears what unfinished saves left in a store, and saves there.

Prints one JSON document: what the clean-up answered, and the steps that the store has then.
"""

from __future__ import annotations

import json
import sys
import warnings
from contextlib import closing, redirect_stdout
from io import StringIO

import torch
import torch.distributed.checkpoint as dcp

from behemoth.checkpoint.commit_log import commits
from behemoth.dcp import BehemothWriter
from behemoth.storage.local import LocalStore
from behemoth_cli import root

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    url = sys.argv[1]
    with redirect_stdout(StringIO()):
        code = root.run(["ckpt", "gc", url, "--keep-last", "2", "--unfinished", "--execute"])
    dcp.save({"w": torch.ones(2)}, storage_writer=BehemothWriter(url))
    with closing(LocalStore(url)) as store:
        sys.stdout.write(json.dumps({"code": code, "steps": [one.step for one in commits(store)]}))
