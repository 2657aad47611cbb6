"""Verify, export, import and reshard in batches: on threads or on machines, resumable, with progress.

`driving` runs the batches of a job on an Executor: `threads` (this process) or `workers` and `worker` (other machines,
which speak `messages`). `jobs` describes a job as data; `verify_job`, `export_job`, `import_job` and `reshard_job` say
what its batches are, the last two by `writing`. `record` keeps what is done, so that the command resumes after a kill.
"""
