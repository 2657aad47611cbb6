"""One module per verb, named like it (`ckpt_X` for `behemoth ckpt X`), and modules that several verbs share.

Shared: `selection` (which checkpoint), `batching` (where batches run), `checking` (verify, scrub), `writing` (import,
reshard), `interop_options` (export, import), `owners`, `rates`, `rank_list`, `candidates` (shell completion). Of `run`:
`run_progress`, `forced_end`.
"""
