"""The sample repository `examples/certify-a-server`: its server, the action, the plug-in."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from time import monotonic, sleep

import pytest
import yaml

from tests.toys import PLUGIN

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "certify-a-server"
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
WORKFLOW = yaml.safe_load((EXAMPLE / ".github" / "workflows" / "certify.yml").read_text())
OPTIONS = "--load n --length 2 --horizon 2 --min-tv 0.3"


@pytest.fixture(scope="module", params=["", "bias"], ids=["right", "biased"])
def repository(request, tmp_path_factory):
    """A copy of the sample with its server running: (folder, address, whether it is biased)."""
    folder = tmp_path_factory.mktemp("repository") / "copy"
    shutil.copytree(EXAMPLE, folder)
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    environment = os.environ | {"PORT": str(port), "FAULT": request.param, "PATH": path()}
    server = subprocess.Popen(["./serve.sh"], cwd=folder, env=environment)
    url = f"http://127.0.0.1:{port}/v1"
    try:
        end = monotonic() + 120
        while not answers(url):
            assert monotonic() < end
            assert server.poll() is None
            sleep(0.2)
        yield folder, url, bool(request.param)
    finally:
        server.terminate()
        server.wait()


def path() -> str:
    """The search path with this interpreter first, under the name that scripts use."""
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/models", timeout=5):
            return True
    except (urllib.error.URLError, ConnectionError):
        return False


def test_the_action_fails_on_bias_alone(repository, tmp_path):
    folder, url, is_biased = repository
    (step,) = [step for step in ACTION["runs"]["steps"] if step.get("id") == "certify"]
    given = {"url": url, "checkpoint": "checkpoint/target", "options": OPTIONS}
    inputs = {name: given.get(name, one.get("default")) for name, one in ACTION["inputs"].items()}
    environment = os.environ | {"PATH": path()}
    for name, value in step["env"].items():
        environment[name] = inputs[value.removeprefix("${{ inputs.").removesuffix(" }}")]
    for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY"):
        environment[name] = str(tmp_path / name)
    done = subprocess.run(
        ["bash", "-eo", "pipefail", "-c", step["run"]], cwd=folder, env=environment, check=False
    )
    assert done.returncode == is_biased
    report = folder / "mtp-verify-report"
    document = json.loads((report / "report.json").read_text())
    assert document["certificates"][0]["verdict"] == ("biased" if is_biased else "pass")
    assert (report / "report.html").is_file()
    assert "verdict" in (tmp_path / "GITHUB_STEP_SUMMARY").read_text()


def test_the_plug_in_fails_on_bias_alone(repository):
    folder, url, is_biased = repository
    options = f"--checkpoint checkpoint/target {OPTIONS}"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    command += [*PLUGIN, "--mtp-verify-url", url]
    done = subprocess.run(
        [*command, "--mtp-verify-options", options],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == is_biased, done.stdout
    wanted = "1 failed, 1 passed" if is_biased else "2 passed"
    assert wanted in done.stdout


def test_the_workflow_uses_inputs_that_the_action_has():
    (step,) = [s for s in WORKFLOW["jobs"]["certify"]["steps"] if "mtp-verify" in s.get("uses", "")]
    assert step["with"].keys() <= ACTION["inputs"].keys()
    required = {name for name, one in ACTION["inputs"].items() if one.get("required")}
    assert required <= step["with"].keys()
