"""The files of one batch: its requests, its answers, and what the runs note between them."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from flux2_client.batch.answer_file import AnswerFile, open_answers
from flux2_client.batch.answer_index import AnswerIndex, open_index
from flux2_client.batch.answer_line import Answer
from shared.errors import OutputRefused
from shared.outputs import make_output_folder


@dataclass(frozen=True)
class BatchPaths:
    """Where the files of a batch are.

    Attributes:
        requests: one request on each line.
        output: gets the answers.
        errors: gets the answers with an error instead; None for `output`.
        images: folder in which images are saved; None to save none.
    """

    requests: Path
    output: Path
    errors: Path | None = None
    images: Path | None = None

    @property
    def index(self) -> Path:
        return self.output.with_name(f"{self.output.name}.state")

    def check(self) -> None:
        """Raise `OutputRefused` if a file cannot be read again and again, or if it has two purposes."""
        try:
            # First, because opening a pipe waits for its writer.
            is_file = stat.S_ISREG(self.requests.stat().st_mode)
            if is_file:
                self.requests.open("rb").close()
        except OSError as error:
            raise OutputRefused(f"cannot read {self.requests}: {error.strerror}; name a batch file") from error
        if not is_file:
            raise OutputRefused(
                f"{self.requests} is no file on a disk, which every run reads from its start; write the requests to one"
            )
        answers = [self.output, *([self.errors] if self.errors else [])]
        for path in answers:
            if path.exists() and not path.is_file():
                raise OutputRefused(f"{path} is no file on a disk, from which the next run reads; choose another one")
        paths = [self.requests, *answers]
        if len({path.resolve() for path in paths}) < len(paths):
            raise OutputRefused(f"{self.output} has two purposes; give requests, answers and errors a file each")


class BatchFiles:
    """The open files of one batch."""

    def __init__(self, requests: BinaryIO, output: AnswerFile, errors: AnswerFile, index: AnswerIndex) -> None:
        self.requests = requests
        self.index = index
        self._output = output
        self._errors = errors

    def write(self, answer: Answer) -> None:
        """Write an answer, and note that its line has one.

        Raises:
            OutputRefused: it cannot be written.
        """
        (self._output if answer.failure is None else self._errors).append(answer)
        self.index.note_answer(answer.stored)

    def read_answers(self, *, retry_failed: bool) -> None:
        """Note the answers of earlier runs; with `retry_failed`, remove those with an error first.

        Raises:
            OutputRefused: a file holds something else.
        """
        files = list(dict.fromkeys((self._output, self._errors)))
        if retry_failed:
            self._forget_failed(files)
        with self.index.transaction():
            for file in files:
                for answer in file.stored():
                    self.index.note_answer(answer)

    def _forget_failed(self, files: list[AnswerFile]) -> None:
        with self.index.transaction():
            for file in files:
                for answer in file.stored():
                    if not answer.succeeded:
                        self.index.note_retry(answer)
        # Then they are removed: a run that ends here has not forgotten which jobs failed.
        for file in files:
            file.keep(lambda answer: answer.succeeded)


@contextmanager
def open_batch(paths: BatchPaths) -> Iterator[BatchFiles]:
    """Open the files of a batch; only one run at a time may have them.

    Raises:
        OutputRefused: a file cannot be used.
    """
    make_output_folder(paths.output.parent)
    with ExitStack() as stack:
        index = stack.enter_context(open_index(paths.index))
        output = stack.enter_context(open_answers(paths.output))
        errors = stack.enter_context(open_answers(paths.errors)) if paths.errors else output
        yield BatchFiles(stack.enter_context(paths.requests.open("rb")), output, errors, index)
