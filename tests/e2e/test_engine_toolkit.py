"""A job for AI Toolkit's own code runs through the whole service; workers read AI_TOOLKIT_PATH from the environment."""

import io
import os

import pytest
from PIL import Image

from shared.demo_model import DEMO_ADAPTER

pytestmark = pytest.mark.skipif(
    "AI_TOOLKIT_PATH" not in os.environ, reason="AI_TOOLKIT_PATH names no checkout of AI Toolkit"
)


def test_both_engines_store_the_same_picture(client):
    body = {
        "model": "flux2",
        "prompts": [{"prompt": "a red fox", "width": 128, "height": 96, "sample_steps": 3}],
        "loras": [{"path": DEMO_ADAPTER}],
    }
    pictures = []
    for engine in ("exact", "ai-toolkit"):
        job = client.submit({**body, "engine": engine})
        assert job.warnings == ()
        assert client.wait(job.request_id, timeout_s=120).status == "succeeded"
        (image,) = client.result(job.request_id).images
        assert image.pipeline.engine == engine
        pictures.append(image.bytes())

    exact, toolkit = (Image.open(io.BytesIO(picture)).tobytes() for picture in pictures)
    assert exact == toolkit
