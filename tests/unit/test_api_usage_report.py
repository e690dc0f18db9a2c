"""Reports of what was used, as the CSV that spreadsheets open."""

import csv
import io
from datetime import date

import pytest

from api.usage_report import report_usage, write_csv
from shared.ledger.usage_rows import Usage, UsageRow
from shared.settings import PriceSettings

DAY = date(2026, 1, 31)


@pytest.mark.parametrize(
    ("adapters", "cell"),
    [
        ("=cmd|'/C calc'!A0", "'=cmd|'/C calc'!A0"),
        ("-1+1.safetensors", "'-1+1.safetensors"),
        # Spreadsheets that separate cells by semicolons begin one here.
        ("hf://o/r/x;=WEBSERVICE(A1);y", "hf://o/r/x;'=WEBSERVICE(A1);y"),
        ("a; @b;+c", "a;' @b;'+c"),
        ("\uff1d1+1", "'\uff1d1+1"),
        # Neither begins a cell.
        ("hf://o/r-2/a=b+c.safetensors@main", "hf://o/r-2/a=b+c.safetensors@main"),
        ("a;b.safetensors + c", "a;b.safetensors + c"),
    ],
)
def test_no_cell_begins_as_a_formula_with_either_separator(adapters, cell):
    row = UsageRow(DAY, "studio", "", "flux2", adapters, Usage(images=1))
    report = report_usage([row], first=DAY, last=DAY, group_by=["adapter"], prices=PriceSettings())

    _, (found, *_) = csv.reader(io.StringIO(write_csv(report)))

    assert found == cell
