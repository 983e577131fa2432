"""Stores of made-up blocks, and what their authors, or the disk, did to them."""

import contextlib
import json
import sqlite3
from types import SimpleNamespace

import numpy as np

from jaxprune.engine import Tally
from jaxprune.engine.database import checksum
from jaxprune.engine.packing import canonical, compress, decompress
from jaxprune.engine.rows import ids_of, row_sum
from jaxprune.engine.trial import Trial


class Shape(SimpleNamespace):
    """What the store asks of a run."""

    def _replace(self, **changed):
        return Shape(**(vars(self) | changed))


def made_up(rng, ids, eps, labelled=0, cap=np.inf):
    """The tally of trials with random numbers."""
    n = len(ids)
    lower = rng.gamma(9.0, 0.1, n).astype(np.float32)
    numbers = [rng.gamma(2.0, 1.0, n).astype(np.float32) for _ in range(4)]
    right = [rng.integers(0, labelled + 1, n).astype(np.int32) for _ in range(2)]
    trials = Trial(rng.random(n) > 0.1, lower, lower * 1.5, *numbers, *right)
    return Tally.of(eps, ids, trials, labelled, cap)


def drop(store, case, blocks):
    """As if they had never arrived."""
    with store._writing():
        store._rows.remove(case, blocks)


def rewrite_first_block(path, change):
    """Replaces the tally of a file's first block, as plain data; its row's checksum is right."""
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        id, case, _, data, _ = db.execute("SELECT * FROM blocks ORDER BY id").fetchone()
        first, *others = decompress(data)
        tally = canonical(change(json.loads(first.tally)))
        write_row(db, id, case, [first._replace(tally=tally), *others])


def write_row(db, id, case, blocks):
    """A row of blocks, its checksum right, in place of another one."""
    values = id, case, ids_of(blocks), compress(blocks)
    db.execute("INSERT OR REPLACE INTO blocks VALUES (?,?,?,?,?)", (*values, row_sum(*values)))


def rewrite_fact(db, kind, change):
    """Replaces what a file says of a kind, as plain data; its checksum is right."""
    query = "SELECT id, text FROM facts WHERE kind=? ORDER BY id"
    id, text = db.execute(query, (kind,)).fetchone()
    text = canonical(change(json.loads(text))).decode()
    update = "UPDATE facts SET text=?, sha256=? WHERE id=?"
    db.execute(update, (text, checksum("facts", id, kind, text), id))
