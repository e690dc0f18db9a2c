"""Sign image files by the rules of C2PA, with a certificate and a key of this host; no other host is asked.

The pixels and every other byte of a file stay as they are: the signature is a block that readers without C2PA skip.
"""

from __future__ import annotations

import io
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

from shared.errors import SignerUnusable, SigningFailed
from shared.extras import require_extras
from shared.provenance.signature import read_signature

if TYPE_CHECKING:
    from shared.provenance.credential import SigningCredential
    from shared.settings import ProvenanceSettings

# Terms of the IPTC: a model drew the image, from words alone or from other images too; or a program without a model.
_SOURCE_TYPES: Final = "http://cv.iptc.org/newscodes/digitalsourcetype"
_GENERATED: Final = f"{_SOURCE_TYPES}/trainedAlgorithmicMedia"
_EDITED: Final = f"{_SOURCE_TYPES}/compositeWithTrainedAlgorithmicMedia"
_SIMULATED: Final = f"{_SOURCE_TYPES}/algorithmicMedia"

_CONTEXT: Final = {
    "version": 1,
    # The file has a thumbnail next to it, and the signature would contain another one.
    "builder": {"thumbnail": {"enabled": False}},
    # The start checks one signature; a check of each would read every image once more.
    "verify": {"verify_after_sign": False, "remote_manifest_fetch": False, "ocsp_fetch": False},
}


class ImageSigner:
    """Signs image files with one credential; any thread may call it.

    Args:
        is_simulated: sign for a simulated slot, whose pictures no model drew.
    """

    def __init__(self, credential: SigningCredential, *, is_simulated: bool = False) -> None:
        # Takes 0.1 s, and only those who sign need it.
        import c2pa

        self.credential = credential
        self._is_simulated = is_simulated
        self._failure = c2pa.C2paError
        self._builder = c2pa.Builder
        try:
            signer = c2pa.Signer.from_info(
                c2pa.C2paSignerInfo(credential.algorithm, credential.chain.encode(), credential.key.encode(), None)
            )
            self._context = c2pa.Context.from_dict(_CONTEXT, signer=signer)
        except c2pa.C2paError as error:
            raise SignerUnusable(f"the certificate and its key cannot be used: {error}") from error

    def sign(self, data: bytes, *, media_type: str, model: str, has_references: bool) -> bytes:
        """Return an image file with a signature, which names this program and the model.

        Args:
            data: a file without a signature.
            media_type: of the file: `image/png`, `image/jpeg` or `image/webp`.
            model: id of the base model.
            has_references: whether the model also saw images, which C2PA tells apart.

        Raises:
            SigningFailed: the certificate has ended, or the file cannot hold a signature.
        """
        signed = io.BytesIO()
        source_type = _SIMULATED if self._is_simulated else _EDITED if has_references else _GENERATED
        try:
            with self._builder(_manifest(model, source_type), context=self._context) as builder:
                builder.sign(media_type, io.BytesIO(data), signed)
        except self._failure as error:
            raise SigningFailed(" ".join(str(error).split())) from error
        return signed.getvalue()


def open_signer(settings: ProvenanceSettings, *, is_simulated: bool = False) -> ImageSigner | None:
    """Return the signer of the settings after it signed a trial image, or None if images are not signed.

    Args:
        is_simulated: see `ImageSigner`.

    Raises:
        MissingExtra: images are to be signed, and the library is not installed.
        SignerUnusable: no valid signature can be made with the certificate and the key.
    """
    if not settings.is_set:
        return None
    require_extras({"c2pa": "provenance", "cryptography": "provenance"})
    from shared.provenance.credential import read_credential

    signer = ImageSigner(read_credential(settings), is_simulated=is_simulated)
    _try(signer, settings)
    return signer


def _try(signer: ImageSigner, settings: ProvenanceSettings) -> None:
    remedy = (
        "C2PA needs a certificate for digital signatures that is no CA's, with the extended key usage emailProtection, "
        "documentSigning or C2PA's own"
    )
    try:
        trial = signer.sign(_trial_image(), media_type="image/png", model="trial", has_references=False)
    except SigningFailed as error:
        raise SignerUnusable(
            f"the certificate in {settings.certificate} cannot sign images: {error}; {remedy}"
        ) from error
    signature = read_signature(trial)
    if signature is None or signature.is_broken:
        found = signature.describe() if signature else "no signature was written"
        raise SignerUnusable(f"signatures by the certificate in {settings.certificate} do not hold: {found}; {remedy}")


def _trial_image() -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (1, 1)).save(file, "PNG")
    return file.getvalue()


def _manifest(model: str, source_type: str) -> dict[str, Any]:
    program = {"name": "flux2-queue", "version": version("flux2-queue")}
    created = {
        "action": "c2pa.created",
        "digitalSourceType": source_type,
        "softwareAgent": program,
        "parameters": {"model": model},
    }
    return {
        "claim_generator_info": [program],
        "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [created]}}],
    }
