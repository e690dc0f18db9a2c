"""The patterns of a PEFT config, which may come from strangers, match names as in PEFT and never for long."""

import re

import pytest

from shared.adapters.name_patterns import MAX_EXPRESSIONS, MAX_PATTERNS, NamePatterns
from shared.errors import AdapterRefused

# As many modules as a LoRA on every layer of FLUX.2 [dev] has.
NAMES = [f"single_transformer_blocks.{index}.attn.to_qkv_mlp_proj" for index in range(200)]


def peft_finds(pattern, name):
    """What PEFT's get_pattern_key answers."""
    return re.match(rf"(.*\.)?({pattern})$", name) is not None


@pytest.mark.parametrize(
    "pattern",
    [
        "to_qkv_mlp_proj", "attn.to_qkv_mlp_proj", "mlp_proj", "attn", NAMES[7], f"^{NAMES[7]}",
        "^attn.to_qkv_mlp_proj",
        r"attn\.to_qkv_mlp_proj$", r"single_transformer_blocks\.[0-9]\..*", r".*\.(1|17)\..*", r"\d+\.attn\..*",
        r"(?:single_)?transformer_blocks\.\d\.attn\.\w+", "7|8", r"^single.*\.3\d\..*proj$",
    ],
)  # fmt: skip
def test_a_pattern_matches_the_names_that_it_matches_in_peft(pattern):
    assert NamePatterns({pattern: 4.0}, where="rank_pattern").numbers_of(NAMES) == {
        name: 4.0 for name in NAMES if peft_finds(pattern, name)
    }


@pytest.mark.parametrize(
    "patterns",
    [
        # The first five took up to 80 s.
        ["(.?)" * 18 + "!"],
        [r"(.*)(.*)(.*)!", r"(.+)(.+)(.+)!"],
        [f"a.cx{index}.?" for index in range(MAX_PATTERNS)],
        [f"z{index}|" + "x|y|" * 60 for index in range(MAX_EXPRESSIONS + 1)],
        [f"({'(' * 60}a{index}{')' * 60}).?" for index in range(MAX_EXPRESSIONS)],
        ["(a+)+b"],
        [f"name_{index}" for index in range(MAX_PATTERNS + 1)],
    ],
)
def test_patterns_that_would_take_long_are_refused(patterns):
    with pytest.raises(AdapterRefused, match=r"too many regular expressions|not supported|and the limit is 2000"):
        NamePatterns(dict.fromkeys(patterns, 1.0), where="alpha_pattern").numbers_of(NAMES)


def test_a_config_may_name_every_layer():
    numbers = {name: float(index) for index, name in enumerate(NAMES)}

    assert NamePatterns(numbers, where="alpha_pattern").numbers_of(NAMES) == numbers
