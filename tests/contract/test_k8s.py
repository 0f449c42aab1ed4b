"""deploy/k8s agrees with Kubernetes' own schemas, with itself, with the image and with the program.

KEDA's resources have no schema among Python's packages. What it hands on to Kubernetes, the autoscaler's behaviour, is
validated as what KEDA makes of it; of the rest, the names are compared with those that this project knows.
"""

import inspect
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from streams.api import HttpServer
from streams.kafka.topics import plan
from streams.settings import ENV_PREFIX, SECRETS, Settings
from tests.support.rights import kafka_rights
from tests.unit.test_deploy import METRIC, SAMPLES, VARIABLE, image_environment, last

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "k8s"
PATCH = FOLDER / "lapses-trigger.yaml"

Manifest = dict[str, Any]

#: The oldest Kubernetes that kustomization.yaml speaks of; and the newest whose schemas there are.
VERSIONS = ("1.30", kubernetes_validate.latest_version())
#: By KEDA 2.18's reference.
SCALED_OBJECT = {
    "scaleTargetRef", "pollingInterval", "cooldownPeriod", "initialCooldownPeriod", "minReplicaCount",
    "maxReplicaCount", "fallback", "advanced", "triggers",
}  # fmt: skip
TRIGGER = {"type", "name", "metadata", "metricType", "useCachedMetrics", "authenticationRef"}
TRIGGER_METADATA = {
    "kafka": {
        "bootstrapServers", "consumerGroup", "topic", "lagThreshold", "activationLagThreshold",
        "offsetResetPolicy", "allowIdleConsumers", "scaleToZeroOnInvalidOffset", "excludePersistentLag",
        "limitToPartitionsWithLag", "ensureEvenDistributionOfPartitions", "version", "partitionLimitation", "sasl",
        "tls", "unsafeSsl",
    },
    "prometheus": {"serverAddress", "query", "threshold", "activationThreshold", "namespace", "ignoreNullValues"},
}  # fmt: skip


def documents(path: Path) -> list[Any]:
    return [document for document in yaml.safe_load_all(path.read_text(encoding="utf-8")) if document]


KUSTOMIZATION: Manifest = documents(FOLDER / "kustomization.yaml")[0]
MANIFESTS: list[Manifest] = [document for name in KUSTOMIZATION["resources"] for document in documents(FOLDER / name)]


def the(kind: str) -> Manifest:
    """The only manifest of a kind."""
    (found,) = (manifest for manifest in MANIFESTS if manifest["kind"] == kind)
    return found


WORKER, TOPICS, SCALER = the("Deployment"), the("Job"), the("ScaledObject")["spec"]
WORKLOADS = [WORKER, TOPICS]
TRIGGERS: list[Manifest] = SCALER["triggers"]
#: With what the patch adds.
PATCHES: list[Manifest] = documents(PATCH)[0]
ALL_TRIGGERS = [*TRIGGERS, *(patch["value"] for patch in PATCHES)]


def kind(manifest: Manifest) -> str:
    return str(manifest["kind"])


def pod(workload: Manifest) -> Manifest:
    found: Manifest = workload["spec"]["template"]["spec"]
    return found


def container(workload: Manifest) -> Manifest:
    (found,) = pod(workload)["containers"]
    return dict(found)


def shared() -> dict[str, str]:
    """The variables of settings.env."""
    lines = (FOLDER / "settings.env").read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def environment(workload: Manifest) -> dict[str, str]:
    """What a container's variables are: the image's, then those of the ConfigMap, then its own."""
    made = KUSTOMIZATION["configMapGenerator"][0]["name"]
    assert container(workload)["envFrom"] == [{"configMapRef": {"name": made}}]
    own = {each["name"]: each["value"] for each in container(workload)["env"]}
    return {**image_environment(), **shared(), **own}


def secrets(workload: Manifest) -> tuple[Manifest, str]:
    """The volume of a pod's secrets, and where the container finds them."""
    (volume,) = (each["secret"] for each in pod(workload)["volumes"] if each["name"] == "secrets")
    (mount,) = (each for each in container(workload)["volumeMounts"] if each["name"] == "secrets")
    assert mount["readOnly"] is True
    return volume, mount["mountPath"]


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Settings]:
    """The settings of each workload, with files such as kustomization.yaml has operators make."""
    files = {
        "redis": "rediss://worker:geheim@redis.example:6379/0\n",
        "kafka_password": "geheim\n",
        "http_token": "geheim-4711-4711-4711\n",
        "ca.pem": "a certificate\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    for name in Settings.model_fields:
        monkeypatch.delenv(ENV_PREFIX + name.upper(), raising=False)
    found = {}
    for workload in WORKLOADS:
        given: dict[str, Any] = {
            name.removeprefix(ENV_PREFIX).lower(): value.replace(secrets(workload)[1], str(tmp_path))
            for name, value in environment(workload).items()
            if name.startswith(ENV_PREFIX)
        }
        found[kind(workload)] = Settings(**given)
    return found


def partitions() -> int:
    """How many the job makes."""
    args = container(TOPICS)["args"]
    return int(args[args.index("--partitions") + 1])


# Kubernetes ---------------------------------------------------------------------------------------------------------


def test_every_file_is_used() -> None:
    """What lies in the folder is applied, and nothing else is named."""
    named = {*KUSTOMIZATION["resources"], *KUSTOMIZATION["configMapGenerator"][0]["envs"], PATCH.name}
    assert {path.name for path in FOLDER.iterdir()} == named | {"kustomization.yaml"}
    assert f"path: {PATCH.name}" in (FOLDER / "kustomization.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", sorted(FOLDER.iterdir()), ids=lambda path: path.name)
def test_every_file_says_what_to_change(path: Path) -> None:
    """Each begins with what it is for and what an operator changes in it."""
    head = re.match(r"(#.*\n)+", path.read_text(encoding="utf-8"))
    assert head
    assert re.search(r"\bChange\b", head[0])


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("manifest", [each for each in MANIFESTS if "keda" not in each["apiVersion"]], ids=kind)
def test_manifests_are_valid(manifest: Manifest, version: str) -> None:
    """Each is what Kubernetes' schema asks for, and has no attribute that it does not know."""
    kubernetes_validate.validate(manifest, version, strict=True)


def test_a_wrong_manifest_is_not_valid() -> None:
    """A mistyped attribute is noticed."""
    wrong = json.loads(json.dumps(WORKER).replace("readOnlyRootFilesystem", "readonlyRootFilesystem"))
    with pytest.raises(kubernetes_validate.ValidationError, match="readonlyRootFilesystem"):
        kubernetes_validate.validate(wrong, VERSIONS[0], strict=True)


def test_workloads_are_commands_of_the_image() -> None:
    """What runs is the image of deploy/Dockerfile, of this version: a worker, and the creation of the topics."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {container(each)["image"] for each in WORKLOADS} == {f"{project['name']}:{project['version']}"}
    (image,) = KUSTOMIZATION["images"]
    assert (image["name"], image["newTag"]) == (project["name"], project["version"])
    assert "command" not in container(WORKER) | container(TOPICS)
    assert container(WORKER)["args"] == json.loads(last("CMD")) == ["worker"]
    assert container(TOPICS)["args"][:2] == ["topics", "create"]
    assert container(TOPICS)["args"][2::2] == ["--partitions", "--replication"]


@pytest.mark.parametrize("workload", WORKLOADS, ids=kind)
def test_pods_are_confined(workload: Manifest) -> None:
    """No pod is root, gains a privilege, writes to its root, has a login to Kubernetes, or takes what is others'."""
    spec, own = pod(workload), container(workload)["securityContext"]
    user, _, group = last("USER").partition(":")
    assert spec["securityContext"] == {
        "runAsNonRoot": True, "runAsUser": int(user), "runAsGroup": int(group), "fsGroup": int(group),
        "seccompProfile": {"type": "RuntimeDefault"},
    }  # fmt: skip
    assert own == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert spec["automountServiceAccountToken"] is False
    assert any(mount["mountPath"] == last("WORKDIR") for mount in container(workload)["volumeMounts"])
    resources = container(workload)["resources"]
    assert resources["limits"] == {"memory": resources["requests"]["memory"]}
    # Of services, Kubernetes would make variables that are named as settings are: SEGMENTER_HTTP_PORT.
    assert spec["enableServiceLinks"] is False


def test_selectors_find_the_workers() -> None:
    """Service, budget and spread go by labels that workers have and the job has not; the policy is for both."""
    labels, others = (each["spec"]["template"]["metadata"]["labels"] for each in WORKLOADS)
    (spread,) = pod(WORKER)["topologySpreadConstraints"]
    selectors = [
        the("Service")["spec"]["selector"],
        the("PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        WORKER["spec"]["selector"]["matchLabels"],
        spread["labelSelector"]["matchLabels"],
    ]
    assert all(selector == labels for selector in selectors)
    policy = the("NetworkPolicy")["spec"]["podSelector"]["matchLabels"]
    assert policy.items() <= labels.items() & others.items()
    assert labels != others


# The program --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(FOLDER.iterdir()), ids=lambda path: path.name)
def test_every_variable_is_a_setting(path: Path) -> None:
    """A variable that no setting reads would be ignored in silence."""
    named = {name.lower() for name in VARIABLE.findall(path.read_text(encoding="utf-8"))}
    assert named <= set(Settings.model_fields)


def test_given_settings_are_valid(settings: dict[str, Settings]) -> None:
    """What workers and the job are given is accepted, TLS and logins included, and a worker listens for Prometheus."""
    worker, topics = settings["Deployment"], settings["Job"]
    assert worker.kafka_over_tls
    assert worker.kafka_with_sasl
    assert worker.redis.get_secret_value().startswith("rediss://")
    assert (worker.http_host, worker.http_port) == ("0.0.0.0", int(last("EXPOSE")))
    assert (worker.broker, worker.group, worker.topics) == (topics.broker, topics.group, topics.topics)
    for name in ("group", "purchases_topic", "signups_topic", "erasures_topic"):
        assert getattr(worker, name) == Settings.model_fields[name].default


def test_logins_are_those_of_the_security_page() -> None:
    """Workers and the job each log in as whom docs/SECURITY.md lists with the rights they need."""
    worker, creator = (kafka_rights(environment(workload)["SEGMENTER_KAFKA_LOGIN"]) for workload in WORKLOADS)
    assert ("group", shared()["SEGMENTER_GROUP"], ["READ"]) in worker
    assert {operation for _, _, operations in creator for operation in operations} == {"CREATE", "DESCRIBE"}


def test_no_secret_is_written_down() -> None:
    """Secrets come from files of a volume that only the pod's group may read, and none lies in the folder."""
    assert "Secret" not in {manifest["kind"] for manifest in MANIFESTS}
    assert "secretGenerator" not in KUSTOMIZATION
    for workload in WORKLOADS:
        assert secrets(workload)[0]["defaultMode"] == 0o440
        assert not {f"{ENV_PREFIX}{name.upper()}" for name in SECRETS} & set(environment(workload))


def test_secrets_are_those_that_operators_are_told_to_make() -> None:
    """Each secret that is mounted or read, and each of its keys, is in the commands of kustomization.yaml."""
    text = (FOLDER / "kustomization.yaml").read_text(encoding="utf-8").replace("\\\n#", "")
    made = {
        name: {file or literal for file, literal in re.findall(r"--from-(?:file=([\w.]+)|literal=(\w+)=)", rest)}
        for name, rest in re.findall(r"create secret generic ([\w-]+)(.*)", text)
    }
    used: dict[str, set[str]] = {}
    for workload in WORKLOADS:
        volume, folder = secrets(workload)
        paths = [Path(value) for value in environment(workload).values() if value.startswith("/run/")]
        assert {str(path.parent) for path in paths} == {folder}
        used[volume["secretName"]] = {path.name for path in paths}
    for each in the("TriggerAuthentication")["spec"]["secretTargetRef"]:
        used.setdefault(each["name"], set()).add(each["key"])
    assert made == used


def test_probes_ask_what_the_worker_answers() -> None:
    """Alive by /healthz, ready by /readyz, on the worker's port; Prometheus is told /metrics."""
    routes = set(re.findall(r'web\.get\("([^"]+)"', inspect.getsource(HttpServer)))
    worker = container(WORKER)
    (port,) = worker["ports"]
    assert str(port["containerPort"]) == environment(WORKER)["SEGMENTER_HTTP_PORT"]
    probes = {name: worker[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")}
    assert {name: probe["path"] for name, probe in probes.items()} == {
        "startup": "/healthz", "liveness": "/healthz", "readiness": "/readyz",
    }  # fmt: skip
    assert {probe["port"] for probe in probes.values()} == {port["name"]}
    told = WORKER["spec"]["template"]["metadata"]["annotations"]
    assert told["prometheus.io/scrape"] == "true"
    assert told["prometheus.io/port"] == str(port["containerPort"])
    assert {probe["path"] for probe in probes.values()} | {told["prometheus.io/path"]} <= routes


def test_prometheus_finds_every_worker() -> None:
    """The service's name resolves to all workers, also to those in a rebalance."""
    service = the("Service")["spec"]
    assert service["clusterIP"] == "None"
    assert service["publishNotReadyAddresses"] is True
    (port,) = service["ports"]
    assert str(port["port"]) == environment(WORKER)["SEGMENTER_HTTP_PORT"]
    assert port["targetPort"] == container(WORKER)["ports"][0]["name"]


def test_workers_have_the_time_to_start_and_to_stop(settings: dict[str, Settings]) -> None:
    """Kubernetes kills a worker only after the worker's own deadlines for starting and stopping."""
    worker, probe = settings["Deployment"], container(WORKER)["startupProbe"]
    assert pod(WORKER)["terminationGracePeriodSeconds"] > worker.stop_within
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 2 * worker.start_within
    assert TOPICS["spec"]["activeDeadlineSeconds"] > worker.start_within * TOPICS["spec"]["backoffLimit"]


def test_ports_are_let_through(settings: dict[str, Settings]) -> None:
    """The policy lets workers reach the broker's port, Redis's and names, and others reach the worker's HTTP only."""
    policy = the("NetworkPolicy")["spec"]
    out = {port["port"] for rule in policy["egress"] for port in rule["ports"]}
    assert out == {53, int(settings["Deployment"].broker.rpartition(":")[2]), 6379}
    assert [port["port"] for rule in policy["ingress"] for port in rule["ports"]] == ["http"]


# KEDA ---------------------------------------------------------------------------------------------------------------


def test_autoscaler_is_valid() -> None:
    """What KEDA is told has names that it knows, and what it makes of it is an autoscaler that Kubernetes accepts."""
    assert set(SCALER) <= SCALED_OBJECT
    for trigger in ALL_TRIGGERS:
        assert set(trigger) <= TRIGGER
        assert set(trigger["metadata"]) <= TRIGGER_METADATA[trigger["type"]]
        assert all(isinstance(value, str) for value in trigger["metadata"].values())
    assert set(SCALER["advanced"]) == {"horizontalPodAutoscalerConfig"}
    made = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "keda-hpa-segmenter"},
        "spec": {
            "minReplicas": SCALER["minReplicaCount"],
            "maxReplicas": SCALER["maxReplicaCount"],
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "segmenter"},
            "behavior": SCALER["advanced"]["horizontalPodAutoscalerConfig"]["behavior"],
        },
    }
    for version in VERSIONS:
        kubernetes_validate.validate(made, version, strict=True)


def test_there_are_as_many_workers_as_partitions(settings: dict[str, Settings]) -> None:
    """At most one worker for each partition that the job makes, never none, and no step for which the rest is idle."""
    target = SCALER["scaleTargetRef"]
    assert (target["kind"], target["name"]) == (WORKER["kind"], WORKER["metadata"]["name"])
    assert "replicas" not in WORKER["spec"], "each apply would set them back"
    inputs = set(settings["Job"].topics.values())
    made = {topic.partitions for topic in plan(settings["Job"], partitions()) if topic.name in inputs}
    assert made == {SCALER["maxReplicaCount"]}
    assert 1 <= SCALER["minReplicaCount"] <= SCALER["maxReplicaCount"]
    assert partitions() % SCALER["minReplicaCount"] == 0


def test_lag_is_that_of_every_input_topic(settings: dict[str, Settings]) -> None:
    """One trigger for each topic that workers share, of their broker and group, with a login, read as they read it."""
    found = [trigger["metadata"] for trigger in TRIGGERS]
    assert {trigger["type"] for trigger in TRIGGERS} == {"kafka"}
    worker = settings["Deployment"]
    assert sorted(each["topic"] for each in found) == sorted(worker.topics.values())
    for each in found:
        assert (each["bootstrapServers"], each["consumerGroup"]) == (worker.broker, worker.group)
        assert each["offsetResetPolicy"] == "earliest"
        assert each["allowIdleConsumers"] == "false"
        assert each["sasl"] == worker.kafka_sasl_mechanism.lower().replace("-", "_").replace("sha_", "sha")
        assert each["tls"] == ("enable" if worker.kafka_over_tls else "disable")
    login = the("TriggerAuthentication")
    assert all(each["authenticationRef"] == {"name": login["metadata"]["name"]} for each in TRIGGERS)
    assert {each["parameter"] for each in login["spec"]["secretTargetRef"]} == {"username", "password", "ca"}


def test_lag_follows_the_settings() -> None:
    """What settings.env gives to workers, kustomize also puts into each trigger."""
    put = {}
    for each in KUSTOMIZATION["replacements"]:
        (target,) = each["targets"]
        (path,) = target["fieldPaths"]
        assert target["select"] == {"kind": "ScaledObject", "name": the("ScaledObject")["metadata"]["name"]}
        put[path.removeprefix("spec.triggers.")] = shared()[each["source"]["fieldPath"].removeprefix("data.")]
    assert put.pop("[type=kafka].metadata.bootstrapServers") == shared()["SEGMENTER_BROKER"]
    assert put.pop("[type=kafka].metadata.consumerGroup") == shared()["SEGMENTER_GROUP"]
    assert put == {f"[name={each['name']}].metadata.topic": each["metadata"]["topic"] for each in TRIGGERS}


def test_workers_do_not_come_and_go(settings: dict[str, Settings]) -> None:
    """A lag that a rebalance makes is over before it counts, and workers leave more slowly than they come."""
    behaviour = SCALER["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    up, down = (behaviour[name]["stabilizationWindowSeconds"] for name in ("scaleUp", "scaleDown"))
    assert 2 * settings["Deployment"].session_timeout < up < down


def test_lapses_are_a_metric_that_workers_expose() -> None:
    """The trigger for work that time makes can be put in as it is, and asks for a metric that exists."""
    (patch,) = PATCHES
    assert (patch["op"], patch["path"]) == ("add", "/spec/triggers/-")
    metadata = patch["value"]["metadata"]
    named = set(METRIC.findall(metadata["query"]))
    assert named
    assert named <= set(SAMPLES)
    assert float(metadata["threshold"]) > 0
