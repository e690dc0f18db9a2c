"""The libraries of the console are what the npm registry has, but for the names of modules."""

import base64
import hashlib
import io
import re
import tarfile

import pytest

from tools.vendor_console import LIBRARIES, ROOT, File, Library, licence_entry, read_archive, vendored_files


def library(*files):
    return Library(name="a", version="1.2.3", integrity="", licence="MIT", folder="", files=files)


def sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("each", LIBRARIES, ids=lambda library: library.name)
def test_the_files_are_those_that_the_tool_wrote_and_their_licence_is_next_to_them(each):
    for file in each.files:
        assert sha256((ROOT / each.folder / file.name).read_text()) == file.sha256
    text = (ROOT / each.folder / "LICENSES.txt").read_text()
    names = ", ".join(file.name for file in each.files)
    assert re.search(rf"^{re.escape(f'{each.name} {each.version} ({names})')}\n\n\S|\n\n ", text, re.MULTILINE)


def test_no_other_file_is_among_them():
    for folder in {each.folder for each in LIBRARIES}:
        names = {file.name for each in LIBRARIES if each.folder == folder for file in each.files}
        assert {file.name for file in (ROOT / folder).iterdir()} == names | {"LICENSES.txt"}


def test_an_archive_with_another_digest_is_refused():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        member = tarfile.TarInfo("package/dist/a.mjs")
        member.size = 4
        archive.addfile(member, io.BytesIO(b"text"))
    data = file.getvalue()
    integrity = "sha512-" + base64.b64encode(hashlib.sha512(data).digest()).decode()

    assert read_archive(data, integrity) == {"dist/a.mjs": "text"}
    with pytest.raises(SystemExit, match="the archive has the integrity sha512-"):
        read_archive(data + b" ", integrity)


def test_modules_import_each_other_by_their_files_and_name_no_source_map():
    text = 'import{options as n}from"./preact.js";export{n}\n'
    members = {"b.mjs": 'import{options as n}from"preact";export{n}\n//# sourceMappingURL=b.mjs.map\n'}

    assert vendored_files(library(File("b.mjs", "b.js", sha256(text))), members) == {"b.js": text}


def test_a_file_that_differs_or_imports_an_unknown_package_is_refused():
    with pytest.raises(SystemExit, match=f"b.js of a has the sha256 {sha256('other' + chr(10))}"):
        vendored_files(library(File("b.mjs", "b.js", sha256("text"))), {"b.mjs": "other"})
    with pytest.raises(SystemExit, match="a module imports 'react', which is not here"):
        vendored_files(library(File("b.mjs", "b.js", "")), {"b.mjs": 'import r from"react"'})


def test_the_licence_of_a_library_names_its_files():
    entry = licence_entry(library(File("b.mjs", "b.js", "")), {"LICENSE": "MIT License\n\n"})

    assert entry == "a 1.2.3 (b.js)\n\nMIT License\n"
