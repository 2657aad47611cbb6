"""The core: `fold` (evidence to observation), `decide` (observation to effects), `ledger` (where the time went), and
`loop`, which drives them. Pure but for the loop; no module here does I/O."""
