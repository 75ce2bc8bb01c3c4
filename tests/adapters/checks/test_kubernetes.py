"""Kubernetes clusters through a `kubectl` that answers in the form of `kubectl get nodes --output=json`."""

from __future__ import annotations

import json

import pytest

from launcher.adapters.checks import kubernetes
from launcher.core.prices.pricing import Cluster
from tests.adapters.checks.conftest import Program
from tests.core.test_checkup_clusters import a_pool

POOL = a_pool("burst", capacity="on_demand", gpus=8, nodes=2, labels={"team": "nlp", "pool": "burst"})
CLUSTER = Cluster(name="prod", provider="kubernetes", pools=[POOL])


def nodes(*gpus: dict[str, str]) -> str:
    return json.dumps({"kind": "List", "items": [{"status": {"allocatable": one | {"cpu": "96"}}} for one in gpus]})


def answering(listed: str, *, contexts: str = "prod dev") -> str:
    return f"""case "$*" in *get-contexts*) printf '%s\\n' {contexts};; *) cat <<'END'
{listed}
END
esac"""


def test_nodes_are_counted_that_have_the_pools_labels(program: Program) -> None:
    seen = program("kubectl", answering(nodes({"nvidia.com/gpu": "8"}, {"nvidia.com/gpu": "8"}, {})))

    checks = kubernetes.cluster(CLUSTER)

    assert [(check.name, check.state) for check in checks] == [
        ("kubernetes prod", "ok"),
        ("kubernetes prod/burst", "ok"),
    ]
    assert "3 nodes with team=nlp, pool=burst, 2 of them with 8 GPUs" in checks[1].found
    assert "--context prod get nodes --selector=pool=burst,team=nlp" in seen.read_text()


def test_nodes_whose_gpus_nobody_announces_are_not_enough(program: Program) -> None:
    program("kubectl", answering(nodes({}, {})))

    assert kubernetes.cluster(CLUSTER)[1].state == "failed"


def test_a_context_that_is_not_there_is_named_with_those_that_are(program: Program) -> None:
    program("kubectl", answering(nodes(), contexts="dev test"))

    (check,) = kubernetes.cluster(CLUSTER)

    assert (check.state, check.found, check.is_credentials) == ("failed", "no such context; there are dev, test", True)


@pytest.mark.parametrize(
    ("words", "is_credentials"),
    [
        ("error: You must be logged in to the server (Unauthorized)", True),
        ("Unable to connect to the server: dial tcp: i/o timeout", False),
    ],
)
def test_a_cluster_that_does_not_answer_says_why(program: Program, words: str, is_credentials: bool) -> None:
    program("kubectl", f"case \"$*\" in *get-contexts*) echo prod;; *) echo '{words}' >&2; exit 1;; esac")

    (check,) = kubernetes.cluster(CLUSTER)

    assert (check.state, check.is_credentials) == ("failed", is_credentials)
    assert words in check.found


def test_without_kubectl_it_is_skipped(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")

    (check,) = kubernetes.cluster(CLUSTER)

    assert check.state == "skipped"
