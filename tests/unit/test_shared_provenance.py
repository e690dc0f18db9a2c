"""Signatures in image files: what they say, what breaks them, and certificates with which nothing can be signed."""

import io
import json
import struct
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import c2pa
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from shared.cli import app
from shared.errors import MissingExtra, OutputRefused, SignatureUnreadable, SignerUnusable, SigningFailed
from shared.image_parameters import read_parameters
from shared.job import ReferenceRef
from shared.provenance.check import check_provenance
from shared.provenance.credential import SigningCredential, read_credential
from shared.provenance.local_certificate import write_local_certificate
from shared.provenance.signature import Signature, has_signature, is_accepted, read_signature, read_trusted
from shared.provenance.signer import ImageSigner, open_signer
from shared.settings import ProvenanceSettings, Settings
from worker.consumer import signing
from worker.consumer.image_file import encode

FORMATS = ["png", "jpeg", "webp"]
PARAMETERS = {"prompt": "a cat", "sample_steps": 25, "guidance_scale": 4.0, "seed": 42, "width": 96, "height": 64}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return write_local_certificate(tmp_path_factory.mktemp("certificate"), name="Studio Aal", days=365)


@pytest.fixture(scope="module")
def authority(made):
    return made.authority.read_text()


@pytest.fixture(scope="module")
def signer(made):
    return open_signer(ProvenanceSettings(certificate=made.certificate, key=made.key))


def unsigned(fmt):
    # Wider than one block of each format, with content in it.
    image = Image.radial_gradient("L").resize((96, 64))
    return encode(Image.merge("RGB", (image, image.rotate(90), image.rotate(180))), fmt, PARAMETERS)


def signed(signer, fmt, *, has_references=False):
    return signer.sign(unsigned(fmt), media_type=f"image/{fmt}", model="flux2", has_references=has_references)


def pixels(data):
    return Image.open(io.BytesIO(data)).tobytes()


def chunks(data, fmt):
    """The parts of a file, each with its name, as its format's specification lays them out."""
    if fmt == "png":
        yield "start", data[:8]
        at = 8
        while at < len(data):
            (size,) = struct.unpack(">I", data[at : at + 4])
            yield data[at + 4 : at + 8].decode(), data[at : at + 12 + size]
            at += 12 + size
    elif fmt == "jpeg":
        yield "start", data[:2]
        at = 2
        while data[at : at + 2] != b"\xff\xda":
            (size,) = struct.unpack(">H", data[at + 2 : at + 4])
            yield f"{data[at + 1]:x}", data[at : at + 2 + size]
            at += 2 + size
        yield "scan", data[at:]
    else:
        # The size of the whole file changes with its content.
        yield "start", data[:4] + data[8:12]
        at = 12
        while at < len(data):
            (size,) = struct.unpack("<I", data[at + 4 : at + 8])
            yield data[at : at + 4].decode(), data[at : at + 8 + size + size % 2]
            at += 8 + size + size % 2


@pytest.mark.parametrize(("fmt", "holder"), [("png", "caBX"), ("jpeg", "eb"), ("webp", "C2PA")])
def test_a_signature_is_one_part_of_the_file_and_every_other_byte_stays(signer, fmt, holder):
    before, after = list(chunks(unsigned(fmt), fmt)), list(chunks(signed(signer, fmt), fmt))

    assert [part for part in after if part[0] != holder] == before
    assert len([name for name, _ in after if name == holder]) == 1
    assert 0 < len(signed(signer, fmt)) - len(unsigned(fmt)) < 8000


@pytest.mark.parametrize("fmt", FORMATS)
def test_the_pixels_and_the_parameters_are_read_as_before(signer, fmt):
    before, after = unsigned(fmt), signed(signer, fmt)

    assert pixels(after) == pixels(before)
    assert read_parameters(after) == PARAMETERS


@pytest.mark.parametrize("fmt", FORMATS)
def test_a_signature_names_its_signer_who_is_trusted_through_the_authority_alone(signer, authority, fmt, tmp_path):
    data = signed(signer, fmt)
    other = write_local_certificate(tmp_path, name="Studio Aal", days=365).authority.read_text()

    found = read_signature(data, trusted=authority)

    assert (found.state, found.signer, found.algorithm, found.problems) == ("trusted", "Studio Aal", "es256", ())
    assert found.made_with.startswith("flux2-queue ")
    assert read_signature(data).state == "valid"
    assert read_signature(data, trusted=other).state == "untrusted"


@pytest.mark.parametrize(
    ("is_simulated", "has_references", "source"),
    [
        (False, False, "trainedAlgorithmicMedia"),
        (False, True, "compositeWithTrainedAlgorithmicMedia"),
        (True, False, "algorithmicMedia"),
    ],
)
def test_the_manifest_says_whether_a_model_made_the_image_and_saw_others(made, is_simulated, has_references, source):
    settings = ProvenanceSettings(certificate=made.certificate, key=made.key)
    data = signed(open_signer(settings, is_simulated=is_simulated), "png", has_references=has_references)

    with c2pa.Reader("image/png", io.BytesIO(data)) as reader:
        [assertion] = reader.get_active_manifest()["assertions"]
    [action] = assertion["data"]["actions"]

    assert action["action"] == "c2pa.created"
    assert action["digitalSourceType"] == f"http://cv.iptc.org/newscodes/digitalsourcetype/{source}"
    assert action["parameters"] == {"model": "flux2"}


@pytest.mark.parametrize(("fmt", "start"), [("png", b"IDAT"), ("jpeg", b"\xff\xda"), ("webp", b"VP8 ")])
def test_a_change_of_the_parameters_or_the_pixels_breaks_the_signature(signer, fmt, start):
    data = signed(signer, fmt)

    # Only the picture's data follows its start, while a signature could contain the same bytes by chance.
    for at in (data.index(b'"a cat"') + 1, data.rindex(start) + 40):
        changed = bytearray(data)
        changed[at] ^= 1
        found = read_signature(bytes(changed))
        assert (found.state, found.problems) == ("broken", ("the file was changed after it was signed",))


def test_a_change_of_the_signature_breaks_it(signer):
    data = bytearray(signed(signer, "png"))
    data[data.index(b"c2pa.signature") + 100] ^= 1

    assert read_signature(bytes(data)).is_broken


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.sampled_from(FORMATS), st.data())
def test_no_damaged_file_is_trusted_with_other_pixels_or_parameters(signer, authority, fmt, data):
    content = bytearray(signed(signer, fmt))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))

    found = read_signature(bytes(content), trusted=authority)

    # The padding of a signature may be anything.
    if found is not None and found.state == "trusted":
        assert read_parameters(bytes(content)) == PARAMETERS
        assert pixels(bytes(content)) == pixels(unsigned(fmt))


@pytest.mark.parametrize("fmt", FORMATS)
def test_a_file_without_a_signature_has_none(fmt):
    assert read_signature(unsigned(fmt)) is None
    assert not has_signature(unsigned(fmt))


def test_data_that_is_no_image_has_no_signature():
    assert read_signature(b"") is None
    assert read_signature(b"text") is None


@pytest.mark.parametrize("fmt", FORMATS)
def test_without_the_library_a_signature_is_noticed_but_not_checked(signer, monkeypatch, fmt):
    monkeypatch.setitem(sys.modules, "c2pa", None)

    found = read_signature(signed(signer, fmt))

    assert found.state == "unchecked"
    assert "install flux2-queue[provenance]" in found.describe()
    assert read_signature(unsigned(fmt)) is None


def test_an_image_is_stored_without_a_signature_and_with_a_warning_after_the_certificate_ended(item, tmp_path):
    issuer, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ended = certificate(key, issuer, days=(-9, -1))
    late = ImageSigner(SigningCredential(pem(ended), key_pem(key), "es256", "late", ended.not_valid_after_utc))

    with pytest.raises(SigningFailed, match="certificate was not valid"):
        signed(late, "png")
    data, warnings = signing.sign(late, unsigned("png"), item())

    assert data == unsigned("png")
    [warning] = warnings
    assert warning.startswith("the image is not signed: ")


def test_an_item_is_signed_as_what_its_references_make_it(signer, item):
    reference = ReferenceRef(slot=1, sha256="0" * 64)

    for spec, source in ((item(), "/trainedAlgorithmic"), (item(references=(reference,)), "/compositeWith")):
        data, warnings = signing.sign(signer, unsigned("png"), spec)
        assert source.encode() in data
        assert warnings == ()


def sign_before_the_end(seconds):
    """Sign with a certificate that ends in some seconds, or in more of them on a host that is too slow for that."""
    issuer, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    # A certificate has whole seconds.
    soon = certificate(key, issuer, days=(-1, seconds / 86_400))
    signer = ImageSigner(SigningCredential(pem(soon), key_pem(key), "es256", "x", soon.not_valid_after_utc))
    try:
        return signed(signer, "png")
    except SigningFailed:
        return sign_before_the_end(4 * seconds)


def test_a_signature_outlasts_its_certificate_as_expired(wait_until):
    data = sign_before_the_end(seconds=2)

    wait_until(lambda: read_signature(data).state == "expired", 120, what="the certificate's end")

    assert "says a certificate that has ended; nothing changed since" in read_signature(data).describe()
    changed = bytearray(data)
    changed[-20] ^= 1
    assert read_signature(bytes(changed)).is_broken


@pytest.mark.parametrize(
    ("state", "any_signer", "trusted_only"),
    [
        (None, True, False),
        ("trusted", True, True),
        ("untrusted", True, False),
        ("valid", True, False),
        ("expired", True, False),
        ("unchecked", True, False),
        ("broken", False, False),
    ],
)
def test_a_broken_signature_is_never_accepted_and_a_missing_one_only_if_none_is_demanded(
    state, any_signer, trusted_only
):
    signature = Signature(state) if state else None

    assert is_accepted(signature, trusted_only=False) is any_signer
    assert is_accepted(signature, trusted_only=True) is trusted_only


# Certificates and keys


def certificate(key, issuer, *, days=(-1, 365), is_ca=False, usages=(ExtendedKeyUsageOID.EMAIL_PROTECTION,)):
    now = datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a test")])
    authority = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "its authority")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(authority)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + timedelta(days=days[0]))
        .not_valid_after(now + timedelta(days=days[1]))
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(not is_ca, *[False] * 4, is_ca, is_ca, False, False), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key()), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    if usages:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    return builder.sign(issuer, hashes.SHA256())


def pem(*certificates):
    return "".join(one.public_bytes(Encoding.PEM).decode() for one in certificates)


def key_pem(key, *, form=PrivateFormat.PKCS8, encryption=None):
    return key.private_bytes(Encoding.PEM, form, encryption or NoEncryption()).decode()


@pytest.fixture
def write(tmp_path):
    """Write the two files of a pair and return the settings that name them."""

    def write(chain, key, **fields):
        (tmp_path / "c.pem").write_text(chain)
        (tmp_path / "k.pem").write_text(key)
        return ProvenanceSettings(certificate=tmp_path / "c.pem", key=tmp_path / "k.pem", **fields)

    return write


ISSUER = ec.generate_private_key(ec.SECP256R1())
P256 = ec.generate_private_key(ec.SECP256R1())


@pytest.mark.parametrize(
    ("make_key", "algorithm", "used"),
    [
        (lambda: ec.generate_private_key(ec.SECP256R1()), None, "es256"),
        (lambda: ec.generate_private_key(ec.SECP384R1()), None, "es384"),
        (lambda: ec.generate_private_key(ec.SECP521R1()), "es512", "es512"),
        (ed25519.Ed25519PrivateKey.generate, None, "ed25519"),
        (lambda: rsa.generate_private_key(65537, 2048), None, "ps256"),
        (lambda: rsa.generate_private_key(65537, 2048), "ps384", "ps384"),
    ],
)
def test_each_kind_of_key_signs_with_its_algorithm(make_key, algorithm, used, write):
    key = make_key()
    settings = write(pem(certificate(key, ISSUER)), key_pem(key), algorithm=algorithm)

    found = read_signature(signed(open_signer(settings), "webp"))

    assert (found.state, found.algorithm, found.signer) == ("valid", used, "a test")


def test_a_key_in_openssls_own_form_and_a_chain_with_its_authority_are_read(write):
    authority = certificate(ISSUER, ISSUER, is_ca=True, usages=())
    settings = write(
        pem(certificate(P256, ISSUER), authority), key_pem(P256, form=PrivateFormat.TraditionalOpenSSL), algorithm=None
    )

    assert read_credential(settings).chain.count("BEGIN CERTIFICATE") == 2
    assert read_signature(signed(open_signer(settings), "png")).state == "valid"


@pytest.mark.parametrize(
    ("chain", "key", "fields", "message"),
    [
        ("none", key_pem(P256), {}, r"c\.pem holds no sound certificate in PEM; name a file with BEGIN CERTIFICATE in"),
        (
            pem(certificate(P256, ISSUER)),
            "none",
            {},
            r"k\.pem holds no sound private key in PEM; name a file with BEGIN",
        ),
        (pem(certificate(P256, ISSUER)), key_pem(ISSUER), {}, "is not that of the first certificate in .*; name the"),
        (
            pem(certificate(P256, ISSUER)),
            key_pem(P256, encryption=BestAvailableEncryption(b"secret")),
            {},
            "has a passphrase, .*; remove it: openssl pkey",
        ),
        (pem(certificate(P256, ISSUER, days=(-9, -1))), key_pem(P256), {}, r"ended on \d{4}-\d\d-\d\d; get a new one"),
        (pem(certificate(P256, ISSUER, days=(1, 9))), key_pem(P256), {}, "begins on .* UTC; wait until then, or"),
        (
            pem(certificate(P256, ISSUER, usages=(ExtendedKeyUsageOID.SERVER_AUTH,))),
            key_pem(P256),
            {},
            "cannot sign images: .*certificate is invalid; C2PA needs a certificate for digital signatures",
        ),
        (pem(certificate(P256, ISSUER, usages=())), key_pem(P256), {}, "cannot sign images: .*; C2PA needs"),
        (pem(certificate(P256, ISSUER, is_ca=True)), key_pem(P256), {}, "cannot sign images: .*; C2PA needs"),
        (
            pem(certificate(P256, ISSUER)),
            key_pem(P256),
            {"algorithm": "ps256"},
            "cannot sign with ps256; set FLUX2_PROVENANCE_ALGORITHM to es256, or unset it",
        ),
    ],
)
def test_a_pair_that_cannot_sign_is_refused_before_anything_is_rendered(chain, key, fields, message, write):
    with pytest.raises(SignerUnusable, match=message):
        open_signer(write(chain, key, **fields))


def test_a_curve_without_an_algorithm_is_refused(write):
    key = ec.generate_private_key(ec.SECP256K1())

    with pytest.raises(SignerUnusable, match=r"C2PA has no algorithm for the key in .*; use one of P-256"):
        open_signer(write(pem(certificate(key, ISSUER)), key_pem(key)))


def test_a_file_that_is_missing_is_refused(made, tmp_path):
    with pytest.raises(
        SignerUnusable, match=r"none\.pem cannot be read: No such file or directory; correct FLUX2_PROV"
    ):
        open_signer(ProvenanceSettings(certificate=made.certificate, key=tmp_path / "none.pem"))


@pytest.mark.parametrize(("given", "missing"), [("CERTIFICATE", "KEY"), ("KEY", "CERTIFICATE")])
def test_a_certificate_and_a_key_are_set_together(given, missing, monkeypatch):
    monkeypatch.setenv(f"FLUX2_PROVENANCE_{given}", "x.pem")

    with pytest.raises(ValueError, match=f"FLUX2_PROVENANCE_{given} is set without FLUX2_PROVENANCE_{missing}; set"):
        Settings()


@pytest.mark.parametrize("options", [["--simulate", "1"], ["--simulate", "2"]])
def test_a_worker_that_cannot_sign_does_not_start(options, made, monkeypatch, tmp_path):
    monkeypatch.setenv("FLUX2_PROVENANCE_CERTIFICATE", str(made.certificate))
    monkeypatch.setenv("FLUX2_PROVENANCE_KEY", str(tmp_path / "none.pem"))
    # No Redis is there: the signer comes first.
    monkeypatch.setenv("FLUX2_REDIS_URL", "redis://127.0.0.1:1/0")
    monkeypatch.setenv("FLUX2_WORKER_LOCK_DIR", str(tmp_path))

    done = CliRunner().invoke(app, ["worker", *options])

    assert isinstance(done.exception, SignerUnusable)


def test_the_key_is_in_no_text(made):
    credential = read_credential(ProvenanceSettings(certificate=made.certificate, key=made.key))

    assert "PRIVATE KEY" in credential.key
    assert "PRIVATE KEY" not in repr(credential)


def test_without_settings_nothing_is_signed_and_no_library_is_loaded():
    code = (
        "import sys; from shared.settings import Settings; from shared.provenance.signer import open_signer; "
        "import worker.simulation.serve; assert open_signer(Settings().provenance) is None; "
        "assert not {'c2pa', 'shared.provenance.credential'} & sys.modules.keys()"
    )

    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
    assert signing.sign(None, b"data", None) == (b"data", ())


# Doctor and commands


def test_the_doctor_says_who_signs_and_until_when(made):
    [found] = check_provenance(ProvenanceSettings(certificate=made.certificate, key=made.key))

    ends = x509.load_pem_x509_certificate(made.certificate.read_bytes()).not_valid_after_utc
    assert (found.state, found.detail) == (
        "ok",
        f"images are signed by Studio Aal with es256, until {ends:%Y-%m-%d}",
    )


def test_the_doctor_is_silent_if_images_are_not_signed():
    assert list(check_provenance(ProvenanceSettings())) == []


@pytest.mark.parametrize(
    ("days", "state", "detail", "remedy"),
    [
        (20, "warning", "19 days from now", "get a new certificate and restart the workers"),
        (-1, "failed", "ended on", "get a new one, or unset FLUX2_PROVENANCE_CERTIFICATE"),
    ],
)
def test_the_doctor_warns_before_a_certificate_ends_and_fails_after(days, state, detail, remedy, write):
    [found] = check_provenance(write(pem(certificate(P256, ISSUER, days=(-30, days))), key_pem(P256)))

    assert (found.name, found.state) == ("provenance", state)
    assert detail in found.detail
    assert remedy in found.remedy


def test_the_doctor_of_a_host_without_the_library_warns(made, monkeypatch):
    monkeypatch.setitem(sys.modules, "c2pa", None)

    [found] = check_provenance(ProvenanceSettings(certificate=made.certificate, key=made.key))

    assert (found.state, found.detail) == ("warning", "a worker on this host cannot sign: no module named 'c2pa'")
    assert found.remedy.startswith("install flux2-queue[provenance]")


def flux2(*arguments):
    return CliRunner().invoke(app, ["provenance", *map(str, arguments)])


def test_a_certificate_is_made_with_a_key_that_only_its_owner_reads(tmp_path, monkeypatch):
    done = flux2("certificate", tmp_path / "made", "--name", "Ann", "--days", "10")

    assert done.exit_code == 0, done.output
    variables = dict(line.split("=", 1) for line in done.stdout.splitlines())
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    credential = open_signer(Settings().provenance).credential
    assert credential.name == "Ann"
    assert (credential.ends - datetime.now(UTC)).days == 9
    assert {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "made").iterdir()} == {
        "authority.pem": 0o644,
        "certificate.pem": 0o644,
        "key.pem": 0o600,
    }


def test_no_certificate_is_replaced(tmp_path):
    flux2("certificate", tmp_path)
    before = (tmp_path / "key.pem").read_bytes()

    done = flux2("certificate", tmp_path)

    assert isinstance(done.exception, OutputRefused)
    assert (tmp_path / "key.pem").read_bytes() == before


def test_a_certificate_alone_in_its_folder_gets_no_key_of_another(tmp_path):
    (tmp_path / "certificate.pem").write_text("of another key")

    done = flux2("certificate", tmp_path)

    assert isinstance(done.exception, OutputRefused)
    assert [path.name for path in tmp_path.iterdir()] == ["certificate.pem"]


@pytest.mark.parametrize("name", ["", "x" * 51, "é" * 26, "two\nlines"])
def test_a_name_that_no_certificate_can_hold_is_refused(name, tmp_path):
    done = flux2("certificate", tmp_path / "made", "--name", name)

    assert done.exit_code == 2
    assert "1 to 50 printable characters" in done.output
    assert not (tmp_path / "made").exists()


def test_a_name_beyond_ascii_is_shown_as_it_was_given(tmp_path):
    done = flux2("certificate", tmp_path, "--name", "é" * 25)

    assert done.exit_code == 0, done.output
    settings = ProvenanceSettings(certificate=tmp_path / "certificate.pem", key=tmp_path / "key.pem")
    assert read_signature(signed(open_signer(settings), "png")).signer == "é" * 25


@pytest.mark.parametrize("content", ["none", "-----BEGIN CERTIFICATE-----\nbm9uZQ==\n-----END CERTIFICATE-----\n"])
def test_a_damaged_authority_is_named_instead_of_the_images_signature(content, signer, tmp_path):
    (tmp_path / "a.png").write_bytes(signed(signer, "png"))
    (tmp_path / "authority.pem").write_text(content)

    done = flux2("show", tmp_path / "a.png", "--trust", tmp_path / "authority.pem")

    assert isinstance(done.exception, SignatureUnreadable)
    assert "authority.pem holds no sound certificate in PEM; name the file of an authority" in str(done.exception)


def test_trusted_signers_without_the_library_are_refused_before_anything_is_rendered(made, monkeypatch):
    monkeypatch.setitem(sys.modules, "c2pa", None)

    with pytest.raises(MissingExtra, match=r"install flux2-queue\[provenance\]"):
        read_trusted(made.authority)


def test_a_signature_is_shown_to_people_and_programs(signer, made, tmp_path):
    path = tmp_path / "a.webp"
    path.write_bytes(signed(signer, "webp"))

    done, as_json = flux2("show", path), flux2("show", path, "--trust", made.authority, "--json")

    assert (done.exit_code, as_json.exit_code) == (0, 0)
    assert "signed by Studio Aal, says a certificate that was not checked; nothing changed since" in done.stdout
    assert json.loads(as_json.stdout)["state"] == "trusted"


def test_a_signature_that_does_not_hold_is_exit_code_1(signer, tmp_path):
    data = bytearray(signed(signer, "png"))
    (tmp_path / "signed.png").write_bytes(data)
    data[-20] ^= 1
    (tmp_path / "changed.png").write_bytes(data)
    (tmp_path / "unsigned.png").write_bytes(unsigned("png"))
    other = write_local_certificate(tmp_path / "other", name="other", days=1).authority

    shown = [flux2("show", tmp_path / f"{name}.png") for name in ("changed", "unsigned")]
    shown.append(flux2("show", tmp_path / "signed.png", "--trust", other))

    assert [done.exit_code for done in shown] == [1, 1, 1]
    assert "broken, was signed by Studio Aal: the file was changed after it was signed" in shown[0].stdout
    assert shown[1].stdout == "not signed\n"
    assert "leads to no trusted one" in shown[2].stdout
