"""fold, decide, the ledger and the loop that bodies share."""
