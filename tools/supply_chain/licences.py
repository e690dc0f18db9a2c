"""State the licences of packages as SPDX expressions, and the licences that an image may contain."""

from __future__ import annotations

import re
from typing import Any

#: Permissive licences, and MPL-2.0, which asks only for changes of its own files.
ALLOWED = frozenset(
    (
        *("0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0"),
        *("CC0-1.0", "CNRI-Python", "ISC", "MIT", "MIT-0", "MIT-CMU", "MPL-2.0", "PSF-2.0", "Zlib"),
        # "BSD", with two or three clauses.
        "LicenseRef-BSD",
    )
)
#: CUDA's libraries, which PyTorch's wheels need. Their licence allows them inside an application that uses a GPU.
NVIDIA = "LicenseRef-NVIDIA-Proprietary"
#: Licences that the wheels hold and the index does not serve; `cuda-toolkit` only names CUDA's libraries.
STATED = {
    "cuda-bindings": "Apache-2.0",
    "cuda-pathfinder": "Apache-2.0",
    "cuda-toolkit": NVIDIA,
    "nvidia-cublas": NVIDIA,
    "nvidia-cuda-runtime": NVIDIA,
    "nvidia-nvjitlink": NVIDIA,
    "nvidia-nvshmem-cu13": NVIDIA,
}
_NVIDIA_NAMES = ("nvidia-", "cuda-")
UNKNOWN = "NOASSERTION"

# Texts and classifiers of packages that write no SPDX expression.
_TEXTS = {
    "apache software license": "Apache-2.0",
    "apache 2.0 license": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "bsd": "LicenseRef-BSD",
    "bsd license": "LicenseRef-BSD",
    "new bsd": "BSD-3-Clause",
    "3-clause bsd license": "BSD-3-Clause",
    "bsd 2-clause license": "BSD-2-Clause",
    "mit license": "MIT",
    "isc license": "ISC",
    "isc license (iscl)": "ISC",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "python software foundation license": "PSF-2.0",
    "nvidia proprietary software": NVIDIA,
    "other/proprietary license": NVIDIA,
}
_OPERATOR = re.compile(r"\s+(?:AND|OR)\s+|[()]")


def state_licence(metadata: dict[str, Any]) -> str:
    """Return the SPDX expression of a package from its metadata, as pip's report holds it."""
    if expression := metadata.get("license_expression"):
        return str(expression)
    text = str(metadata.get("license") or "").strip()
    if _is_expression(text):
        return text
    classifiers = [
        line.rpartition("::")[2].strip() for line in metadata.get("classifier", ()) if line.startswith("License ::")
    ]
    known = [_TEXTS[name.lower()] for name in (*classifiers, text) if name.lower() in _TEXTS]
    # Of several classifiers, a user may choose one.
    return " OR ".join(dict.fromkeys(known)) or UNKNOWN


def refused_licences(name: str, expression: str) -> list[str]:
    """Return the parts of a package's expression that no image may contain."""
    allowed = ALLOWED | ({NVIDIA} if name.startswith(_NVIDIA_NAMES) else set())
    return [part for part in _parts(expression) if part not in allowed]


def _is_expression(text: str) -> bool:
    return bool(text) and all(part in ALLOWED | {NVIDIA} for part in _parts(text))


def _parts(expression: str) -> list[str]:
    return [part.strip() for part in _OPERATOR.split(expression) if part.strip()]
