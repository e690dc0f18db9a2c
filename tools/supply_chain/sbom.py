"""Write the bill of materials of each container image, as CycloneDX, and the list of licences.

    python -m tools.supply_chain.sbom FOLDER

Everything comes from `deploy/packages.json` and the libraries of the console, so the files are the same on every host,
and need no network.

Source:
    https://cyclonedx.org/docs/1.6/json/
"""

from __future__ import annotations

import base64
import json
import sys
import tomllib
import uuid
from pathlib import Path
from typing import Any

from tools.supply_chain.licences import UNKNOWN
from tools.supply_chain.lock import MACHINES, PACKAGES, ROOT, wanted
from tools.vendor_console import CONSOLE_LIBRARIES, Library


def main() -> None:
    """Write `api.cdx.json`, `worker.cdx.json` and `licences.txt` into the folder."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    packages = json.loads(PACKAGES.read_text())
    for image in MACHINES:
        (folder / f"{image}.cdx.json").write_text(json.dumps(bill_of_materials(image, packages), indent=1) + "\n")
    (folder / "licences.txt").write_text(licence_list(packages))
    sys.stdout.write(f"wrote {', '.join(f'{image}.cdx.json' for image in MACHINES)} and licences.txt to {folder}/\n")


def bill_of_materials(image: str, packages: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the CycloneDX document of an image: its packages, their files' hashes, licences and dependencies."""
    inside = {name: package for name, package in sorted(packages.items()) if image in package["images"]}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    root = f"pkg:pypi/{project['name']}@{project['version']}"
    direct = sorted({_name(line) for line in wanted(image)} & set(inside))
    # The same content has the same number, so that a changed number means a changed image.
    number = uuid.uuid5(uuid.NAMESPACE_URL, f"{root}{image}{json.dumps(inside, sort_keys=True)}{CONSOLE_LIBRARIES}")
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{number}",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": root,
                "name": project["name"],
                "version": project["version"],
                "purl": root,
                "licenses": [{"license": {"id": project["license"]}}],
            },
            "properties": [{"name": "flux2:image", "value": image}],
        },
        "components": [
            *(_component(name, package) for name, package in inside.items()),
            # The project's own package, which each image has, contains the console.
            *map(_library_component, CONSOLE_LIBRARIES),
        ],
        "dependencies": [
            {
                "ref": root,
                "dependsOn": [*(_purl(name, inside[name]) for name in direct), *map(_npm_purl, CONSOLE_LIBRARIES)],
            },
            *({"ref": _npm_purl(library), "dependsOn": []} for library in CONSOLE_LIBRARIES),
            *(
                {
                    "ref": _purl(name, package),
                    "dependsOn": [_purl(one, inside[one]) for one in package["requires"] if one in inside],
                }
                for name, package in inside.items()
            ),
        ],
    }


def licence_list(packages: dict[str, dict[str, Any]]) -> str:
    """Return one line for each package: name, version, licence, images."""
    lines = [
        f"{name} {package['version']}\t{package['licence']}\t{', '.join(package['images'])}"
        for name, package in sorted(packages.items())
    ]
    lines += [
        f"{library.name} {library.version}\t{library.licence}\t{', '.join(MACHINES)}" for library in CONSOLE_LIBRARIES
    ]
    return "\n".join(lines) + "\n"


def _component(name: str, package: dict[str, Any]) -> dict[str, Any]:
    licence = package["licence"]
    return {
        "type": "library",
        "bom-ref": _purl(name, package),
        "name": name,
        "version": package["version"],
        "purl": _purl(name, package),
        **({} if licence == UNKNOWN else {"licenses": [{"expression": licence}]}),
        # One hash for each processor's wheel, as properties: a component's own hashes are those of one file.
        "properties": [{"name": "flux2:wheel-sha256", "value": digest} for digest in package["hashes"]],
    }


def _library_component(library: Library) -> dict[str, Any]:
    digest = base64.b64decode(library.integrity.removeprefix("sha512-")).hex()
    return {
        "type": "library",
        "bom-ref": _npm_purl(library),
        "name": library.name,
        "version": library.version,
        "purl": _npm_purl(library),
        "licenses": [{"expression": library.licence}],
        "hashes": [{"alg": "SHA-512", "content": digest}],
    }


def _npm_purl(library: Library) -> str:
    # The @ of a scope is written %40, as package URLs ask.
    return f"pkg:npm/{library.name.replace('@', '%40')}@{library.version}"


def _purl(name: str, package: dict[str, Any]) -> str:
    return f"pkg:pypi/{name}@{package['version']}"


def _name(requirement: str) -> str:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    return canonicalize_name(Requirement(requirement).name)


if __name__ == "__main__":
    main()
