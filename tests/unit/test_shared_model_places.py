"""Weights that say which model they are are served as that model only; weights that say nothing are served."""

import json

import pytest

from shared.catalog import MODELS
from shared.errors import CheckpointError
from shared.model_places import check_model_places
from shared.settings import ModelSettings

BASE, DISTILLED = "flux2_klein_4b", "flux2_klein_4b_distilled"


@pytest.fixture
def folder(tmp_path):
    """A function that writes a checkpoint's empty files, diffusers' folders if there is an index, and that index."""

    def write(*files, index=None):
        for file in files:
            (tmp_path / file).touch()
        if index is not None:
            (tmp_path / "transformer").mkdir()
            (tmp_path / "model_index.json").write_text(index if isinstance(index, str) else json.dumps(index))
        return tmp_path

    return write


def check(model, place):
    check_model_places(ModelSettings(id=model, path=str(place)))


@pytest.mark.parametrize(
    ("model", "files", "index", "found", "evidence"),
    [
        (BASE, [], {"is_distilled": True}, DISTILLED, "has a model_index.json with is_distilled true"),
        (DISTILLED, [], {"is_distilled": False}, BASE, "has a model_index.json with is_distilled false"),
        (BASE, ["flux-2-klein-4b.safetensors"], None, DISTILLED, "holds flux-2-klein-4b.safetensors"),
        (DISTILLED, ["flux-2-klein-base-4b.safetensors"], None, BASE, "holds flux-2-klein-base-4b.safetensors"),
        # As the hub has it: diffusers' folders next to the single file.
        (BASE, ["flux-2-klein-4b.safetensors"], {"is_distilled": True}, DISTILLED, "is_distilled true"),
        (BASE, ["flux-2-klein-4b.safetensors"], {}, DISTILLED, "holds flux-2-klein-4b.safetensors"),
        (BASE, ["flux-2-klein-base-9b.safetensors"], None, "flux2_klein_9b", "flux-2-klein-base-9b.safetensors"),
        ("flux2", ["flux-2-klein-4b.safetensors"], None, DISTILLED, "holds flux-2-klein-4b.safetensors"),
        (DISTILLED, ["flux2-dev.safetensors"], None, "flux2", "holds flux2-dev.safetensors"),
    ],
)
def test_a_folder_of_another_model_is_refused_with_the_evidence_and_the_settings(
    folder, model, files, index, found, evidence
):
    place = folder(*files, index=index)

    with pytest.raises(CheckpointError) as refused:
        check(model, place)

    message = str(refused.value)
    assert f"FLUX2_MODEL_PATH {place} " in message
    assert evidence in message
    assert f"so it is {found}, not {model}; set FLUX2_MODEL_ID (or --model of flux2 up) to {found}, or" in message
    check(found, place)


@pytest.mark.parametrize("model", [BASE, DISTILLED])
@pytest.mark.parametrize("index", [None, {}, {"is_distilled": None}, {"is_distilled": "yes"}, "[]", "not JSON"])
def test_a_folder_that_does_not_say_what_it_holds_is_served(folder, model, index):
    check(model, folder("weights.safetensors", index=index))


@pytest.mark.parametrize("model", [BASE, DISTILLED])
@pytest.mark.parametrize("stated", [True, False])
def test_the_models_own_single_file_wins_because_it_is_the_one_that_loads(folder, model, stated):
    both = [MODELS[name].transformer_file for name in (BASE, DISTILLED)]

    check(model, folder(*both, index={"is_distilled": stated}))


def test_the_file_of_a_quite_different_model_says_nothing_about_diffusers_folders(folder):
    check("flux2", folder("flux-2-klein-4b.safetensors", index={"_class_name": "Flux2Pipeline"}))


def test_the_index_of_another_pipeline_is_ignored(folder):
    check("flux2", folder(index={"is_distilled": False}))


@pytest.mark.parametrize("model", MODELS.values(), ids=list(MODELS))
def test_a_repository_in_the_catalogue_is_served_as_its_model_only(model):
    check(model.id, model.base_model)
    check(model.id, "somebody/a-copy")

    for other in MODELS.keys() - {model.id}:
        with pytest.raises(CheckpointError, match=f"repository of {model.id}, so it is {model.id}, not {other}; set"):
            check(other, model.base_model.lower())


def test_the_default_repositorys_name_may_be_a_folder_that_holds_another_model(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    place = tmp_path / MODELS[BASE].base_model
    place.mkdir(parents=True)
    (place / MODELS[DISTILLED].transformer_file).touch()

    with pytest.raises(CheckpointError, match=f"so it is {DISTILLED}"):
        check_model_places(ModelSettings(id=BASE))
