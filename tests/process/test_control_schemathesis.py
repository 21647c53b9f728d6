"""F38: the config service as a stranger's tool sees it: schemathesis, by its OpenAPI document, over real mTLS.

MESHLIB_FUZZ: about how many requests. Every reply must be in the document: its status, its type, its schema; none a 5xx.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from meshlib.control_link import RemoteAuthority
from meshlib.identity.csr import make_csr
from meshlib.identity.join_token import JoinToken
from meshlib.identity.spiffe import SpiffeId
from process.controlled import DOMAIN, Controlled

REQUESTS = int(os.environ.get("MESHLIB_FUZZ", "400"))
OPERATIONS = 19
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
WITHIN_S = 600.0
ROTATION = "/v1/ca/rotate"
"""Left to the requests of `tests/control/test_api.py`: two new roots, and the certificate of this test is nobody's."""


@pytest.mark.fuzz
def test_no_request_is_answered_with_what_the_document_does_not_say(tmp_path: Path) -> None:
    """With a certificate of a service and the operator's token, generated requests, valid and not."""
    with Controlled(tmp_path, {"backend": {}}) as world:
        csr, key = make_csr(SpiffeId.for_service(DOMAIN, "backend"))
        issued = RemoteAuthority([world.url], DOMAIN, "x").enrol(JoinToken.parse(world.token("backend")), csr)
        (tmp_path / "leaf.pem").write_bytes(issued.chain_pem)
        (tmp_path / "key.pem").write_bytes(key)
        command = [
            sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()", "run", f"{world.url}/openapi.json",
            "--checks", CHECKS, "--phases", "fuzzing", "--max-examples", str(max(5, REQUESTS // OPERATIONS)),
            "--exclude-path", ROTATION, "--tls-verify", "false", "--request-cert", "leaf.pem",
            "--request-cert-key", "key.pem", "-H", f"Authorization: Bearer {world.operator_token().bearer}",
            "--generation-database", "none", "--continue-on-failure", "--no-color",
        ]  # fmt: skip
        ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=WITHIN_S, check=False)
        counted = re.search(r"Test cases:\s+(.*)|(\d+) generated", ran.stdout)
        print(ran.stdout[-1500:])
        assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]
        assert counted is not None
        assert world.control.alive
        assert "Traceback" not in world.control.log()
