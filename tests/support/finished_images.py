"""Finish images as a worker does, without one."""

import colorsys
import hashlib
import io
from functools import lru_cache

from PIL import Image, ImageDraw

from shared.job import AdapterReport, ItemResult, ItemSpec, PipelineReport, ReferenceReport

_SHARED_PICTURES = 8


def store_image(api, claim, data, adapters=()):
    """Store the image of a claim and describe it, as a worker does before it commits the result."""
    key = f"results/{claim.job_id}/{claim.index}/{claim.fence}/image.png"
    api.store.put(key, data, content_type="image/png")
    return ItemResult(
        key=key,
        format="png",
        content_type="image/png",
        width=claim.spec.width,
        height=claim.spec.height,
        sha256=hashlib.sha256(data).hexdigest(),
        size_bytes=len(data),
        timings={"denoise": 1.5},
        adapters=adapters,
        references=tuple(
            ReferenceReport(slot=ref.slot, sha256=ref.sha256, width=64, height=80) for ref in claim.spec.references
        ),
        pipeline=PipelineReport(
            engine="exact",
            precision="bf16",
            base_revision="r",
            device="cpu",
            adapter_mode="merged",
            change="none",
            versions={},
        ),
    )


def finish_queued(api, pools=("flux2", "flux2+sigmas")):
    """Finish every image that waits in these pools with a small picture; return their number."""
    count = 0
    while claim := api.ledger.claim_next([*pools], slot="seeds", boot="boot", warm="base"):
        spec = claim.spec
        result = store_image(api, claim, draw_picture(spec.width, spec.height, spec.seed), _reports(spec))
        assert api.ledger.commit(claim, result) == "committed"
        count += 1
    return count


def seed_images(api, count, *, per_job=100):
    """Store jobs with this many finished images in all, which share the files of a few pictures."""
    redis, results = api.ledger.redis, {}
    # Nothing of a test survives a crash: writing each of thousands of commits to the disk would take minutes.
    redis.config_set("appendfsync", "no")
    for start in range(0, count, per_job):
        specs = [_small_spec(seed) for seed in range(start, min(count, start + per_job))]
        api.ledger.accept(f"seeded-{start}", specs, record={"warnings": []})
        while claim := api.ledger.claim_next(["flux2"], slot="seeds", boot="boot", warm="base"):
            spec = claim.spec
            picture = (spec.width, spec.height, spec.seed % _SHARED_PICTURES)
            if picture not in results:
                results[picture] = store_image(api, claim, draw_picture(*picture))
            assert api.ledger.commit(claim, results[picture]) == "committed"
    redis.config_set("appendfsync", "always")


def _small_spec(seed):
    width, height = [(128, 128), (192, 128), (128, 192)][seed // 100 % 3]
    return ItemSpec(
        model="flux2",
        prompt=f"picture {seed}",
        neg="",
        width=width,
        height=height,
        requested_width=width,
        requested_height=height,
        seed=seed,
        num_inference_steps=4,
        guidance_scale=4.0,
        adapters=(),
        output_format="png",
    )


@lru_cache(maxsize=64)
def draw_picture(width, height, seed):
    """Return a PNG with a disc in a colour of the seed."""
    hue = seed * 0.13 % 1
    image = Image.new("RGB", (width, height), _rgb(hue, 0.35, 0.3))
    radius = min(width, height) // 3
    ImageDraw.Draw(image).circle((width // 2, height // 2), radius, fill=_rgb(hue + 0.4, 0.6, 0.9))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _rgb(*hsv):
    return tuple(round(255 * part) for part in colorsys.hsv_to_rgb(*hsv))


def _reports(spec):
    return tuple(
        AdapterReport(
            path=ref.path,
            sha256=ref.sha256,
            multiplier=ref.multiplier,
            kind="lora",
            ranks=(8,),
            layers_touched=10,
            layers_total=10,
        )
        for ref in spec.adapters
    )
