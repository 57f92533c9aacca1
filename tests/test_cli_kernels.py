import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lbcompiler import cli_kernels, cli_reports
from lbcompiler.artifact import Artifact, KernelRecord
from tests.test_cli import MANIFEST

KERNEL = KernelRecord(
    name="gemm_kernel",
    arch="sm_80",
    registers=255,
    spill_bytes=12,
    shared_bytes=4096,
    threads=256,
    occupancy=0.125,
)


def artifact_with(*kernels: KernelRecord) -> Artifact:
    return Artifact(Path("m.lbc"), MANIFEST.model_copy(update={"kernels": list(kernels)}))


def test_an_artifact_for_a_cpu_has_none(capsys: pytest.CaptureFixture[str]) -> None:
    cli_kernels.kernels(artifact_with(), as_json=False)
    assert capsys.readouterr().out == "m.lbc has no kernels of a GPU: it is for the processor\n"


def test_a_row_for_each(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {("sm_80", "gemm_kernel"): ["HMMA.16816.F32", "LDGSTS.E.128"]}
    monkeypatch.setattr(cli_kernels, "instructions", lambda artifact: found)
    cli_kernels.kernels(artifact_with(KERNEL), as_json=False)
    row = next(line for line in capsys.readouterr().out.splitlines() if "gemm_kernel" in line)
    said = ["gemm_kernel", "sm_80", "255", "12", "4096", "256", "12%"]
    assert row.split() == [*said, "HMMA.16816.F32", "LDGSTS.E.128"]


@pytest.mark.parametrize("found", [{}, {("sm_80", "gemm_kernel"): ["HMMA.16816.F32"]}])
def test_json_is_the_page_s(
    found: dict[Any, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_kernels, "instructions", lambda artifact: found)
    cli_kernels.kernels(artifact_with(KERNEL), as_json=True)
    (kernel,) = json.loads(capsys.readouterr().out)["kernels"]
    assert kernel["instructions"] == found.get(("sm_80", "gemm_kernel"))
    page = Path("docs/json.md").read_text().partition("```json inspect --kernels\n")[2]
    (described,) = json.loads(page.partition("```")[0])["kernels"]
    assert list(kernel) == list(described)


def test_a_spill_is_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    whole = KERNEL.model_copy(update={"name": "whole", "spill_bytes": 0})
    cli_reports.compiled(artifact_with(KERNEL, whole), 1.0, "not asked for", as_json=False)
    warning = "warning: the kernel gemm_kernel for sm_80 needs more registers than there are and"
    assert capsys.readouterr().err.startswith(warning)


def test_no_spill_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    whole = KERNEL.model_copy(update={"spill_bytes": 0})
    cli_reports.compiled(artifact_with(whole), 1.0, "not asked for", as_json=False)
    assert capsys.readouterr().err == ""


def test_the_option(monkeypatch: pytest.MonkeyPatch) -> None:
    from lbcompiler import artifact, cli

    monkeypatch.setattr(artifact, "open_artifact", lambda path: artifact_with(KERNEL))
    monkeypatch.setattr(cli_kernels, "instructions", lambda artifact: {})
    result = CliRunner().invoke(cli.app, ["inspect", "m.lbc", "--kernels"])
    assert result.exit_code == 0, result.output
    assert "gemm_kernel" in result.stdout
    assert "pip install nvidia-cuda-cuobjdump" in result.stdout.replace("\n", " ")
