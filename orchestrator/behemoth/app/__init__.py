"""Use cases, built on the core and the adapters: no argument parsing and no terminal here (`behemoth_cli`).

A run: `start_run`, `run_directory`, `body` (decisions become calls), `checkpoint_desk` (the leader's work on a store),
`machines` (the Runtime's thread), `drains` (copies to a second store). What is kept of it: `journal_file`, `event_log`,
`save_book`, `restore_book`, `history`, `summary`. Commands on checkpoints: `batches`, `clean_store`.
"""
