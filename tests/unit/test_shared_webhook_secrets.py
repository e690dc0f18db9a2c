"""The secrets that sign webhooks, by tenant."""

import base64
import hashlib
import hmac
from datetime import UTC, datetime

import pytest
from standardwebhooks.webhooks import Webhook, WebhookVerificationError
from typer.testing import CliRunner

from flux2_client.webhook_commands import app
from shared.settings import WebhookSettings
from shared.webhook_secrets import signing_secrets, tenant_secret

KEY = bytes(range(32))
SHARED = "whsec_" + base64.b64encode(KEY).decode()


def test_a_tenants_secret_is_an_hmac_of_its_name():
    made = hmac.new(KEY, b"flux2-queue webhooks of tenant acme", hashlib.sha256).digest()

    # A deployment's receivers have it, so it must not change.
    assert tenant_secret(SHARED, "acme") == "whsec_" + base64.b64encode(made).decode()
    assert tenant_secret(SHARED, "default") == SHARED


def test_one_tenants_receiver_refuses_what_another_tenant_can_sign():
    now = datetime.now(UTC)
    signature = Webhook(tenant_secret(SHARED, "acme")).sign("id", now, "{}")
    headers = {"webhook-id": "id", "webhook-timestamp": str(int(now.timestamp())), "webhook-signature": signature}

    assert Webhook(tenant_secret(SHARED, "acme")).verify("{}", headers) == {}
    with pytest.raises(WebhookVerificationError):
        Webhook(tenant_secret(SHARED, "other")).verify("{}", headers)


@pytest.mark.parametrize(
    ("tenant", "shared_signature", "signers"),
    [
        ("default", True, [SHARED]),
        ("default", False, [SHARED]),
        ("acme", True, [tenant_secret(SHARED, "acme"), SHARED]),
        ("acme", False, [tenant_secret(SHARED, "acme")]),
    ],
)
def test_messages_are_signed_with_the_tenants_secret_and_with_the_shared_one_while_that_is_kept(
    tenant, shared_signature, signers
):
    settings = WebhookSettings(secret=SHARED, shared_signature=shared_signature)

    assert signing_secrets(settings, tenant) == signers


def test_the_command_prints_a_tenants_secret(monkeypatch):
    monkeypatch.setenv("FLUX2_WEBHOOK_SECRET", SHARED)

    assert CliRunner().invoke(app, ["secret", "acme"]).output == tenant_secret(SHARED, "acme") + "\n"
    shared = CliRunner().invoke(app, ["secret", "default"])
    assert shared.stdout == SHARED + "\n"
    assert "give it only to receivers that you run yourself" in shared.stderr
    refused = CliRunner().invoke(app, ["secret", "a/b"])
    assert (refused.exit_code, "no name of a tenant" in refused.output) == (2, True)


def test_the_command_says_how_to_make_a_secret_if_there_is_none():
    refused = CliRunner().invoke(app, ["secret", "acme"])

    assert "openssl rand -base64 32" in str(refused.exception)
