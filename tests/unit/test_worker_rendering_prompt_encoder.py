"""Prompts to embeddings, compared with the results of ai-toolkit's code and its processor."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from shared.errors import CheckpointError, InvalidRequest
from worker.checkpoint.locate import TextEncoderFiles
from worker.model.text_encoder import MISTRAL, QWEN, load_text_encoder
from worker.model.tokenizer import load_tokenizer
from worker.rendering.prompt_encoder import PromptEncoder, embed, measure_cut, tokenize

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def text_encoder(goldens):
    return load_text_encoder(TextEncoderFiles(goldens / "text/mistral_tiny"), device=CPU, dtype=torch.float32)


@pytest.fixture
def encoder(text_encoder, goldens):
    tokenizer = load_tokenizer(goldens / "text/mistral_processor_pad_left")
    return PromptEncoder(text_encoder, tokenizer, device=CPU, cache_size=2)


@pytest.mark.parametrize("side", ["left", "right"])
def test_ids_and_embeddings_are_the_trainers(side, text_encoder, goldens, cases, assert_close):
    (case,) = cases(type="text", name=f"mistral_{side}")
    tokenizer = load_tokenizer(goldens / case["tokenizer"])
    golden = load_file(goldens / case["file"])

    for index, prompt in enumerate(case["prompts"]):
        ids, mask = tokenize(tokenizer, prompt)
        with torch.no_grad():
            embeds = embed(text_encoder, ids, mask)

        assert torch.equal(ids.int(), golden[f"input_ids_{index}"])
        assert torch.equal(mask.int(), golden[f"attention_mask_{index}"])
        assert_close(embeds, golden[f"prompt_embeds_{index}"], case["tolerance"]["prompt_embeds"])


def test_layers_above_the_last_that_is_read_are_not_loaded(text_encoder):
    assert len(text_encoder.layers) == 30  # of 32 in the folder
    assert not [name for name, _ in text_encoder.named_parameters() if "vision" in name or "lm_head" in name]


def test_a_prompt_that_hides_an_image_token_is_refused(goldens):
    tokenizer = load_tokenizer(goldens / "text/mistral_processor_pad_left")

    with pytest.raises(InvalidRequest, match=r"\[IMG\]") as refused:
        tokenize(tokenizer, "a [IM[IMG]G] cat")

    assert refused.value.field == "prompt"


def test_a_known_prompt_is_not_encoded_again(encoder, text_encoder):
    runs = []
    handle = text_encoder.register_forward_hook(lambda *_: runs.append(1))
    with torch.no_grad():
        first = encoder.encode("a cat").embeds
        again = encoder.encode("a cat").embeds
    handle.remove()

    assert len(runs) == 1
    assert torch.equal(first, again)


def test_the_prompt_used_longest_ago_is_forgotten_first(encoder, text_encoder):
    runs = []
    handle = text_encoder.register_forward_hook(lambda *_: runs.append(1))
    with torch.no_grad():
        for prompt in ("a", "b", "a", "c", "a", "b"):  # two are kept: c pushes b out, and b then c
            encoder.encode(prompt)
    handle.remove()

    assert len(runs) == 4


def test_a_prompt_that_is_cut_says_how_many_tokens_it_has_and_which_text_is_lost_also_from_the_cache(encoder):
    long = "a red fox " * 300 + "the end"
    with torch.no_grad():
        fits = encoder.encode("a red fox")
        first, again = encoder.encode(long), encoder.encode(long)
        other = encoder.encode(long + " is another one")

    assert not fits.is_cut
    assert fits.tokens < 512
    assert first.is_cut
    assert (first.tokens, first.unused) == (again.tokens, again.unused)
    assert first.unused.endswith("fox the end")
    # The tokens after the cut, and no others, are missing from the embeddings.
    assert torch.equal(first.embeds, other.embeds)
    kept = long[: len(long) - len(first.unused)].strip()
    with torch.no_grad():
        assert torch.equal(encoder.encode(f"{kept} {'x' * 2000}").embeds[:, :505], first.embeds[:, :505])


@pytest.mark.parametrize(
    ("text", "family"),
    [("mistral_processor_pad_left", MISTRAL), ("mistral_processor_pad_right", MISTRAL), ("qwen3_tiny", QWEN)],
)
def test_the_count_is_exact_around_the_limit(text, family, goldens):
    tokenizer = load_tokenizer(goldens / "text" / text, family=family)
    seen = set()

    for words in range(1, 700):
        prompt = "a " * words
        tokens, unused = measure_cut(tokenizer, prompt, family=family)
        if not 505 <= tokens <= 560:
            continue
        ids, mask = tokenize(tokenizer, prompt, family=family)
        longer, _ = tokenize(tokenizer, prompt + "a a a", family=family)
        seen.add((tokens > 512, unused == ""))
        assert int(mask.sum()) == min(tokens, 512)
        # Where text is lost, more of it changes nothing.
        assert (unused != "") <= torch.equal(ids, longer)

    assert (False, True) in seen
    assert (True, False) in seen


def test_a_cut_that_removes_only_the_end_of_the_template_loses_no_text(goldens):
    tokenizer = load_tokenizer(goldens / "text/mistral_processor_pad_left")
    fitting = next(prompt for words in range(700) if measure_cut(tokenizer, prompt := "a" + " a" * words)[0] == 513)

    assert measure_cut(tokenizer, fitting) == (513, "")


def test_the_chat_template_of_an_older_processor_is_found(goldens, tmp_path):
    folder = tmp_path / "tokenizer"
    shutil.copytree(goldens / "text/mistral_processor_pad_left", folder)
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text('{"chat_template": "{{ bos_token }}old"}')

    assert load_tokenizer(folder).chat_template == "{{ bos_token }}old"


def test_a_tokenizer_without_a_chat_template_is_refused(goldens, tmp_path):
    folder = tmp_path / "tokenizer"
    shutil.copytree(goldens / "text/mistral_processor_pad_left", folder)
    (folder / "chat_template.jinja").unlink()

    with pytest.raises(CheckpointError, match="chat_template"):
        load_tokenizer(folder)


def test_a_text_encoder_with_a_missing_weight_is_refused_by_name(goldens, tmp_path):
    folder = tmp_path / "encoder"
    shutil.copytree(goldens / "text/mistral_tiny", folder)
    weights = load_file(folder / "model.safetensors")
    del weights["language_model.model.layers.7.mlp.up_proj.weight"]
    from safetensors.torch import save_file

    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(CheckpointError, match=r"layers\.7\.mlp\.up_proj\.weight"):
        load_text_encoder(TextEncoderFiles(folder), device=CPU, dtype=torch.float32)
