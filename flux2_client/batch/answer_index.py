"""What a run knows of the lines of a batch: on the disk, because there may be more of them than the memory holds.

The answers are the truth, and each run reads them again. Only the ids of jobs that have not been answered are here
alone; without them the API would find the jobs by their idempotency keys, for a day. So the file, next to the answers,
is deleted once every job has been answered.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from flux2_client.batch.answer_line import StoredAnswer, id_key
from shared.errors import OutputRefused

_TABLES: Final = """
DROP TABLE IF EXISTS answers;
DROP TABLE IF EXISTS seen;
DROP TABLE IF EXISTS names;
CREATE TABLE answers (key TEXT PRIMARY KEY, answer_id TEXT NOT NULL, succeeded INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE seen (key TEXT PRIMARY KEY, number INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE names (folded TEXT PRIMARY KEY, key TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS jobs (
    key TEXT PRIMARY KEY, answer_id TEXT NOT NULL, request_id TEXT NOT NULL, failed_job TEXT NOT NULL
) WITHOUT ROWID;
"""
_SUFFIXES: Final = ("", "-wal", "-shm", "-journal")


class LineJob(NamedTuple):
    """The job of a line that has no answer yet.

    Attributes:
        answer_id: of the content with which the line was submitted.
        request_id: empty if it was not submitted.
        failed_job: the job of the attempt before; empty for the first.
    """

    answer_id: str
    request_id: str
    failed_job: str


class AnswerIndex:
    """The lines of a batch by their custom_id; only one run at a time may have it open.

    Every method raises `OutputRefused` if the file cannot be written or read any more.
    """

    def __init__(self, path: Path, database: sqlite3.Connection) -> None:
        self._path = path
        self._database = database

    def note_answer(self, answer: StoredAnswer) -> None:
        """Note that a line is answered; its job is not needed any more."""
        row = (answer.key, answer.answer_id, answer.succeeded)
        self._execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", row)
        self._execute("DELETE FROM jobs WHERE key = ?", (answer.key,))

    def find_answer(self, key: str) -> StoredAnswer | None:
        """Return the answer to the line with a key."""
        row = self._execute("SELECT answer_id, succeeded FROM answers WHERE key = ?", (key,)).fetchone()
        return row and StoredAnswer(key, row[0], "", bool(row[1]))

    def first_number(self, custom_id: str, number: int) -> int:
        """Return the number of the first line of this run with a custom_id; `number` if there was none."""
        key = id_key(custom_id)
        self._execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", (key, number))
        self._execute("INSERT OR IGNORE INTO names VALUES (?, ?)", (_folded(custom_id), key))
        first: int = self._execute("SELECT number FROM seen WHERE key = ?", (key,)).fetchone()[0]
        return first

    def owns_name(self, custom_id: str) -> bool:
        """Return whether a custom_id came before all that differ from it in case alone; `first_number` knows it."""
        statement = "SELECT key FROM names WHERE folded = ?"
        owner: str = self._execute(statement, (_folded(custom_id),)).fetchone()[0]
        return owner == id_key(custom_id)

    def note_job(self, custom_id: str, job: LineJob) -> None:
        self._note_job(id_key(custom_id), job)

    def find_job(self, custom_id: str) -> LineJob | None:
        statement = "SELECT answer_id, request_id, failed_job FROM jobs WHERE key = ?"
        row = self._execute(statement, (id_key(custom_id),)).fetchone()
        return row and LineJob(*row)

    def note_retry(self, answer: StoredAnswer) -> None:
        """Note that the line of a failed answer is to be rendered again, in another job."""
        self._note_job(answer.key, LineJob(answer.answer_id, "", answer.request_id))

    def forget_jobs(self) -> None:
        """Forget all jobs: those that are left belong to lines that are not in the file any more."""
        self._execute("DELETE FROM jobs")

    def has_jobs(self) -> bool:
        return self._execute("SELECT 1 FROM jobs LIMIT 1").fetchone() is not None

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Store all changes of the block at its end, which takes a hundredth of the time, or none if it fails."""
        self._execute("BEGIN")
        try:
            yield
        except BaseException:
            self._execute("ROLLBACK")
            raise
        self._execute("COMMIT")

    def _execute(self, statement: str, values: Sequence[str | int] = ()) -> sqlite3.Cursor:
        try:
            return self._database.execute(statement, values)
        except sqlite3.Error as error:
            raise _refusal(self._path, error) from error

    def _note_job(self, key: str, job: LineJob) -> None:
        self._execute("INSERT OR REPLACE INTO jobs VALUES (?, ?, ?, ?)", (key, *job))


@contextmanager
def open_index(path: Path) -> Iterator[AnswerIndex]:
    """Open an index without answers; the jobs of an earlier run are in it. Without jobs, it is deleted at the end.

    Raises:
        OutputRefused: another run has it, or the file cannot be used.
    """
    database = None
    try:
        database = sqlite3.connect(path, timeout=0, isolation_level=None)
        # In this order: a log that no other process reads needs no shared memory, which network file systems lack.
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        database.execute("PRAGMA journal_mode = WAL")
        # A crash of the host may lose the last changes, but not damage the file.
        database.execute("PRAGMA synchronous = NORMAL")
        database.executescript(_TABLES)
    except sqlite3.Error as error:
        if database is not None:
            database.close()
        raise _refusal(path, error) from error
    index = AnswerIndex(path, database)
    try:
        yield index
    finally:
        with closing(database):
            is_needed = index.has_jobs()
        if not is_needed:
            _delete(path)


def _folded(custom_id: str) -> str:
    return id_key(custom_id.casefold())


def _delete(path: Path) -> None:
    for suffix in _SUFFIXES:
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _refusal(path: Path, error: sqlite3.Error) -> OutputRefused:
    if getattr(error, "sqlite_errorname", "").startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return OutputRefused(f"another flux2 batch writes the same answers; wait for its end ({path} is locked)")
    if isinstance(error, sqlite3.OperationalError):
        return OutputRefused(f"{path} cannot be written: {error}; make room, or choose another --output")
    return OutputRefused(
        f"{path} is damaged: {error}; delete it and run the command again: the answers are in another file"
    )
