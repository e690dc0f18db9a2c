"""Load the tokenizer of a text encoder's folder."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from shared.errors import CheckpointError
from worker.model.text_encoder import MISTRAL, TextEncoderFamily


def load_tokenizer(folder: Path, *, family: TextEncoderFamily = MISTRAL) -> PreTrainedTokenizerFast:
    """Return the tokenizer of tokenizer.json with its chat template, or the processor's template.

    Raises:
        CheckpointError: the tokenizer cannot be loaded, or lacks an attribute that the family needs.
    """
    try:
        with quiet_transformers():
            # A fixed class: with mistral-common installed, AutoTokenizer returns another backend. A processor would
            # need torchvision and add nothing to text.
            tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: the tokenizer cannot be loaded: {error}") from error
    old_template = folder / "chat_template.json"  # where processors kept it before chat_template.jinja
    if old_template.is_file() and not (folder / "chat_template.jinja").is_file():
        tokenizer.chat_template = json.loads(old_template.read_text())["chat_template"]
    for requirement in family.tokenizer_requirements:
        if getattr(tokenizer, requirement) is None:
            raise CheckpointError(f"{folder}: the tokenizer has no {requirement}")
    return tokenizer


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Suppress transformers' progress bars and its table of weights that are skipped on purpose."""
    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
