"""Folds the journal into all that must survive a restart: the observation, the ledger, saves and restores."""

from __future__ import annotations

from dataclasses import dataclass

from behemoth.app.restore_book import RestoreBook
from behemoth.app.save_book import SaveBook
from behemoth.reconcile.fold import fold
from behemoth.reconcile.journal import Line, decode_lines
from behemoth.reconcile.ledger import Ledger, book
from behemoth.state.evidence import Evidence
from behemoth.state.observation import Observation


class BookKeeper:
    """A witness of the loop that keeps the ledger; None until the run is opened."""

    def __init__(self) -> None:
        self.ledger: Ledger | None = None

    def witness(self, evidence: Evidence, before: Observation | None, after: Observation) -> None:
        self.ledger = book(self.ledger, before, evidence, after)


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """What a journal says. `observation` is None for a run that has not been opened."""

    observation: Observation | None
    books: BookKeeper
    saves: SaveBook
    restores: RestoreBook

    def witness(self, evidence: Evidence, before: Observation | None, after: Observation) -> None:
        """A witness of the loop: updates every book."""
        for book_of in (self.books, self.saves, self.restores):
            book_of.witness(evidence, before, after)


def read_history(journal: bytes) -> History:
    """Folds a whole journal; a torn last line is left out. Raises Corrupt for any other damage."""
    observation: Observation | None = None
    books, saves, restores = BookKeeper(), SaveBook(), RestoreBook()
    for line in decode_lines(journal):
        if isinstance(line, Line):
            before, observation = observation, fold(observation, line.evidence, line.now_us)
            books.witness(line.evidence, before, observation)
            saves.witness(line.evidence, before, observation)
            restores.witness(line.evidence, before, observation)
    return History(observation=observation, books=books, saves=saves, restores=restores)
