"""Sign the file of an image, or say why it has no signature: an image that was rendered is never lost for that."""

from __future__ import annotations

import logging

from shared.errors import SigningFailed
from shared.job import ItemSpec
from shared.provenance.signer import ImageSigner
from worker.consumer import image_file

logger = logging.getLogger("flux2.worker.consumer")


def sign(signer: ImageSigner | None, data: bytes, spec: ItemSpec) -> tuple[bytes, tuple[str, ...]]:
    """Return an image file with a signature, and warnings for its result.

    Args:
        signer: None returns the file as it is.
        data: the file that `image_file.encode` returned.
    """
    if signer is None:
        return data, ()
    media_type = image_file.content_type(spec.output_format)
    try:
        return signer.sign(data, media_type=media_type, model=spec.model, has_references=bool(spec.references)), ()
    except SigningFailed as error:
        logger.error("image not signed", extra={"error": str(error)})
        return data, (f"the image is not signed: {error}",)
