"""The parts of the documentation that follow from the code are up to date."""

import pytest

from shared.ledger import Ledger
from shared.settings import QueueSettings
from tools.reference import error_codes
from tools.reference.markdown import plain, replace_part
from tools.reference.pages import ROOT, render_files


def test_every_generated_file_is_what_the_code_gives(redis_client):
    files = render_files(Ledger(redis_client, QueueSettings()))

    stale = [str(file.relative_to(ROOT)) for file, text in files.items() if file.read_text() != text]

    assert len(files) >= 7
    assert stale == [], "run `make reference`, and look at what it changed"


def test_the_page_of_calls_has_the_fields_of_a_form_and_each_role_that_a_call_needs():
    page = (ROOT / "docs/reference/calls.md").read_text()

    edits = page.partition("### POST /v1/images/edits\n")[2].partition("\n### ")[0]

    assert "| `image` | binary or list of binary (at most 3) | Required. 1 to 3 reference images" in edits
    assert "| `prompt` | string" in edits
    assert "also needs the role `read`" in edits
    assert "Needs the role `submit`." in edits


def test_an_error_code_without_an_explanation_is_named(monkeypatch):
    monkeypatch.setattr(error_codes, "TEXTS", {"made_up": None, **error_codes.TEXTS})

    with pytest.raises(ValueError, match="made_up"):
        error_codes.write_list()


def test_a_page_keeps_what_surrounds_a_part():
    page = "before\n<!-- a: written by python -m tools.reference -->\nold\n<!-- end of a -->\nafter\n"

    written = replace_part(page, "a", "new\n")

    assert "old" not in written
    assert written.startswith("before\n<!-- a")
    assert written.endswith("\n\nnew\n\n<!-- end of a -->\nafter\n")
    with pytest.raises(ValueError, match="no part between"):
        replace_part(page, "b", "new")


def test_only_markup_is_escaped():
    assert plain("a <dir> of FLUX.2 [dev], *.hf.co, A_B and `<x>`") == (
        r"a &lt;dir> of FLUX.2 \[dev\], \*.hf.co, A_B and `<x>`"
    )
