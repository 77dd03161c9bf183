"""What launch/monitoring ships: promtool accepts it, and its alerts fire when they should."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest
import yaml
from documented import PAGE, documented_metrics
from prometheus_server import MONITORING


def promtool(*arguments: str) -> str:
    if shutil.which("promtool") is None:
        pytest.skip("needs promtool (Debian's package prometheus)")
    result = subprocess.run(
        ["promtool", *arguments], capture_output=True, text=True, timeout=300, cwd=MONITORING
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def rules() -> list[dict[str, str]]:
    (group,) = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]
    return group["rules"]


def test_promtool_accepts_configuration_and_rules() -> None:
    assert "1 rule files found" in promtool("check", "config", "prometheus.yml")
    promtool("check", "rules", "--lint=all", "--lint-fatal", "alerts.yml")


def test_every_alert_fires_on_its_fault_and_on_nothing_else() -> None:
    promtool("test", "rules", "alerts_test.yml")
    cases = yaml.safe_load((MONITORING / "alerts_test.yml").read_text())["tests"]
    checks = [check for case in cases for check in case["alert_rule_test"]]
    for rule in rules():
        mine = [bool(c["exp_alerts"]) for c in checks if c["alertname"] == rule["alert"]]
        assert {True, False} <= set(mine), rule["alert"]


def test_alerts_and_dashboard_ask_for_metrics_that_there_are() -> None:
    dashboard = json.loads((MONITORING / "grafana" / "vse-scale.json").read_text())
    expressions = [rule["expr"] for rule in rules()]
    expressions += [t["expr"] for panel in dashboard["panels"] for t in panel["targets"]]
    asked = {name for text in expressions for name in re.findall("vse_scale_\\w+", text)}
    known = set(documented_metrics())
    known |= {f"vse_scale_step_seconds_{part}" for part in ("bucket", "sum", "count")}
    assert asked <= known


def test_every_alert_is_documented() -> None:
    listed = set(re.findall("^\\| `(VseScale\\w+)`", PAGE.read_text(), re.MULTILINE))
    assert listed == {rule["alert"] for rule in rules()}


def test_every_file_that_compose_mounts_is_there() -> None:
    services = yaml.safe_load((MONITORING / "compose.yml").read_text())["services"]
    mounted = [
        volume.split(":")[0]
        for service in services.values()
        for volume in service["volumes"]
        if volume.startswith(".")
    ]
    assert mounted
    assert all((MONITORING / path).exists() for path in mounted)


def test_what_is_shipped_watches_nobody_and_lets_nobody_in() -> None:
    (scrape,) = yaml.safe_load((MONITORING / "prometheus.yml").read_text())["scrape_configs"]
    (pattern,) = scrape["file_sd_configs"][0]["files"]
    assert list(MONITORING.glob(pattern)) == []
    (example,) = MONITORING.glob("targets/example*")
    assert yaml.safe_load(example.read_text())[0]["targets"]
    services = yaml.safe_load((MONITORING / "compose.yml").read_text())["services"]
    assert "--web.listen-address=127.0.0.1:9090" in services["prometheus"]["command"]
    grafana = services["grafana"]["environment"]
    assert grafana["GF_SERVER_HTTP_ADDR"] == "127.0.0.1"
    assert grafana["GF_SECURITY_ADMIN_PASSWORD"].startswith("${GRAFANA_PASSWORD:?")
    dockerfile = (MONITORING.parent / "Dockerfile").read_text()
    assert re.search(r"^USER [1-9]", dockerfile, re.MULTILINE)
