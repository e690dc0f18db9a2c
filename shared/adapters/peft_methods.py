"""Refuse PEFT adapters that are more than factors on unchanged base weights, from their config.

The tensors of such an adapter look like those of a LoRA, and applying them as one gives a wrong image.

Source:
    LoraConfig in peft/tuners/lora/config.py, and LoraLayer.update_layer in layer.py, of PEFT 0.21.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shared.errors import AdapterRefused

# Values of `init_lora_weights` that leave the base weights as they are; `default` is SimpleTuner's word for true.
_KEEP_BASE = ("true", "false", "default", "gaussian", "eva", "orthogonal", "mica")
# Beginnings of values that take a part out of the base weights, so that the adapter holds this part too.
_CONVERTIBLE = ("pissa", "olora", "corda", "lora_ga")
# Entries of a config that are set if another method is in use.
_METHODS = {
    "use_qalora": "QA-LoRA, whose factors take averages of a layer's inputs",
    "use_bdlora": "BD-LoRA, whose factors hold only the blocks of a diagonal",
    "alora_invocation_tokens": "Activated LoRA, which acts on some of the tokens only",
    "arrow_config": "Arrow, which chooses between adapters for each token",
    "kasa_config": "KaSA, which changes the base weights",
    "layer_replication": "layer_replication, which repeats layers of the model",
}


def refuse_other_methods(config: Mapping[str, Any], where: str) -> None:
    """Refuse a config that states another method than a LoRA, a DoRA or a LoHa on the published base weights.

    Args:
        where: what holds the config, for messages.

    Raises:
        AdapterRefused: the message names the method and what to do.
    """

    def read(name: str) -> Any:
        # Some writers put the component's name before a key.
        return config.get(f"transformer.{name}", config.get(name))

    for entry, method in _METHODS.items():
        if read(entry):
            raise AdapterRefused(f"{where} says {entry}: the adapter is made with {method}; train a plain LoRA or DoRA")
    start = read("init_lora_weights")
    # As in PEFT, in any case of letters.
    word = str(start).lower()
    if start is None or word in _KEEP_BASE:
        return
    says = f"{where} says init_lora_weights {str(start)[:40]!r}"
    if word.startswith(_CONVERTIBLE):
        raise AdapterRefused(
            f"{says}: the adapter was trained on base weights that this method had changed; convert it to a LoRA of "
            "the original weights (PEFT: save_pretrained with path_initial_model_for_weight_conversion)"
        )
    if word == "loftq":
        raise AdapterRefused(
            f"{says}: the adapter was trained on quantised base weights and makes up for their error, which other "
            "weights do not have; train it again with init_lora_weights=True"
        )
    raise AdapterRefused(
        f"{says}, which is unknown here and may have changed the base weights; train the adapter with "
        f"init_lora_weights=True, or with {', '.join(_KEEP_BASE[3:])}"
    )
