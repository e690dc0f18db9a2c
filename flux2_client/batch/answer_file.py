"""The file of a batch's answers, which grows by whole lines and survives the end of the process at any moment."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from flux2_client.batch.answer_line import BEGINNING, Answer, StoredAnswer
from flux2_client.part_file import open_part
from shared.errors import OutputRefused
from shared.outputs import make_output_folder


class AnswerFile:
    """Answers in the order in which their lines were finished."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path = path
        self._file = file

    def stored(self) -> Iterator[StoredAnswer]:
        """Yield the answers of earlier runs; the last line is removed if it was cut off.

        Raises:
            OutputRefused: the file holds something else.
        """
        for _, answer in self._stored_lines():
            yield answer

    def keep(self, is_kept: Callable[[StoredAnswer], bool]) -> None:
        """Remove the answers for which `is_kept` is false; the file is replaced once the new one is complete.

        Raises:
            OutputRefused: the new one cannot be written; the file is as before.
        """
        try:
            with open_part(self._path) as new:
                new.truncate()
                for line, answer in self._stored_lines():
                    if is_kept(answer):
                        new.write(line)
                # Else a loss of power may leave an empty file under the name of the old one.
                new.flush()
                os.fsync(new.fileno())
                self._file.close()
        except OSError as error:
            raise self._full(error) from error
        self._file = _open(self._path)

    def append(self, answer: Answer) -> None:
        """Write an answer: the whole line, or nothing.

        Raises:
            OutputRefused: it cannot be written.
        """
        # Past the buffer, which would keep what could not be written.
        file = self._file.fileno()
        whole_bytes = os.fstat(file).st_size
        rest = answer.encode()
        try:
            while rest:
                rest = rest[os.write(file, rest) :]
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(file, whole_bytes)
            raise self._full(error) from error

    def close(self) -> None:
        self._file.close()

    def _stored_lines(self) -> Iterator[tuple[bytes, StoredAnswer]]:
        self._file.seek(0)
        whole_bytes = 0
        for number, line in enumerate(self._file, start=1):
            if not line.endswith(b"\n"):
                self._cut(line, number, whole_bytes)
                break
            whole_bytes += len(line)
            try:
                yield line, StoredAnswer.parse(line)
            except (ValueError, KeyError) as error:
                raise self._refusal(number) from error
        self._file.seek(0, os.SEEK_END)

    def _cut(self, rest: bytes, number: int, whole_bytes: int) -> None:
        """Remove the beginning of a line whose end was not written."""
        # After a crash of the host, a file may end with zeros.
        written = rest.rstrip(b"\0")
        if not (written.startswith(BEGINNING) or BEGINNING.startswith(written)):
            raise self._refusal(number)
        self._file.truncate(whole_bytes)

    def _full(self, error: OSError) -> OutputRefused:
        return OutputRefused(
            f"cannot write {self._path}: {error.strerror}; make room and run the command again, which goes on"
        )

    def _refusal(self, number: int) -> OutputRefused:
        return OutputRefused(f"line {number} of {self._path} is no answer of a batch; choose another file")


@contextmanager
def open_answers(path: Path) -> Iterator[AnswerFile]:
    """Open a file of answers, and create it and its folder.

    Raises:
        OutputRefused: it cannot be written.
    """
    make_output_folder(path.parent)
    answers = AnswerFile(path, _open(path))
    try:
        yield answers
    finally:
        answers.close()


def _open(path: Path) -> BinaryIO:
    try:
        # At its end in any case, also after it was read.
        return path.open("a+b")
    except OSError as error:
        raise OutputRefused(f"cannot write {path}: {error.strerror}; choose another file") from error
