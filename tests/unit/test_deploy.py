"""The deployment files: docker-compose.yml, the Dockerfile and Prometheus agree with each other and with the code."""

import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase

from streams import metrics
from streams.settings import ENV_PREFIX, Settings

ROOT = Path(__file__).resolve().parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"

EXACT_IMAGE = re.compile(r"[a-z0-9/-]+:v?\d+\.\d+\.\d+(-[a-z0-9.-]+)?")
VARIABLE = re.compile(rf"\b{ENV_PREFIX}([A-Z_]+)")
METRIC = re.compile(r"\bsegmenter_[a-z_]+")

#: The attributes of a service that this project uses, by the Compose specification.
SERVICE_ATTRIBUTES = {
    "build", "cap_drop", "command", "depends_on", "environment", "healthcheck", "image", "init", "ports", "read_only",
    "restart", "security_opt", "stop_grace_period", "tmpfs", "user", "volumes",
}  # fmt: skip


def read_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


COMPOSE: dict[str, Any] = read_yaml(ROOT / "docker-compose.yml")
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
ONE_SHOT = {
    target
    for service in SERVICES.values()
    for target, how in service.get("depends_on", {}).items()
    if how["condition"] == "service_completed_successfully"
}
LASTING = sorted(set(SERVICES) - ONE_SHOT)

Instruction = tuple[str, str]


def dockerfile_stages() -> list[list[Instruction]]:
    """Each stage of the Dockerfile as its instructions, the one that builds on another begun by FROM."""
    text = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    stages: list[list[Instruction]] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        name, _, rest = line.partition(" ")
        if name == "FROM":
            stages.append([])
        stages[-1].append((name, rest.strip()))
    return stages


STAGES = dockerfile_stages()
FINAL = STAGES[-1]


def last(instruction: str) -> str:
    """What the final stage's last such instruction says."""
    found = [rest for name, rest in FINAL if name == instruction]
    assert found, f"the final stage has no {instruction}"
    return found[-1]


def image_environment() -> dict[str, str]:
    """The variables that the image sets."""
    return dict(word.split("=", 1) for name, rest in FINAL if name == "ENV" for word in shlex.split(rest))


def interpolated(value: object) -> str:
    """What Compose makes of a value where the environment sets nothing."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", str(value))


def settings_in_compose(service: str) -> dict[str, str]:
    """A service's settings by the name of the field."""
    variables = {**image_environment(), **SERVICES[service]["environment"]}
    return {
        name.removeprefix(ENV_PREFIX).lower(): interpolated(value)
        for name, value in variables.items()
        if name.startswith(ENV_PREFIX)
    }


def seconds(duration: str) -> float:
    match = re.fullmatch(r"(\d+)(s|m)", duration)
    assert match, f"{duration} is no duration in seconds or minutes"
    return int(match[1]) * {"s": 1, "m": 60}[match[2]]


def alert_rules() -> dict[str, dict[str, Any]]:
    """Every alert by its name; rules that only record a series are none."""
    rules = [rule for group in read_yaml(PROMETHEUS / "alerts.yml")["groups"] for rule in group["rules"]]
    rules = [rule for rule in rules if "record" not in rule]
    assert len({rule["alert"] for rule in rules}) == len(rules), "an alert's name is given twice"
    return {rule["alert"]: rule for rule in rules}


ALERTS = alert_rules()


def declared_samples() -> dict[str, set[str]]:
    """Every sample that streams/metrics.py can give, with its labels."""
    suffixes = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"]}
    samples = {}
    for metric in vars(metrics).values():
        if isinstance(metric, MetricWrapperBase):
            for family in metric.describe():
                for suffix in suffixes[family.type]:
                    samples[family.name + suffix] = {*metric._labelnames, *(["le"] if suffix == "_bucket" else [])}
    return samples


SAMPLES = declared_samples()


# docker-compose.yml -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("service", SERVICES)
def test_services_use_known_attributes_only(service: str) -> None:
    """A mistyped attribute, which Compose would refuse, is found without Compose."""
    assert set(SERVICES[service]) <= SERVICE_ATTRIBUTES


def test_top_level_is_known() -> None:
    """The file has the sections of the Compose specification, extensions, and no obsolete version."""
    assert {name for name in COMPOSE if not name.startswith("x-")} == {"name", "services", "volumes"}


@pytest.mark.parametrize("service", SERVICES)
def test_images_are_pinned(service: str) -> None:
    """Every image has an exact version, so that the same file starts the same programs tomorrow."""
    assert EXACT_IMAGE.fullmatch(SERVICES[service]["image"])


def test_own_image_has_the_projects_version() -> None:
    """The image that Compose builds is tagged with the version of the project, and built from deploy/Dockerfile."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    built = [service for service in SERVICES.values() if "build" in service]
    assert {service["image"] for service in built} == {f"{project['name']}:{project['version']}"}
    for service in built:
        assert (ROOT / service["build"]["context"] / service["build"]["dockerfile"]).samefile(
            ROOT / "deploy/Dockerfile"
        )


@pytest.mark.parametrize("service", LASTING)
def test_lasting_services_are_restarted_and_checked(service: str) -> None:
    """What is to run for good comes back after a crash or a reboot, and can be asked how it is."""
    assert SERVICES[service]["restart"] == "unless-stopped"
    check = SERVICES[service]["healthcheck"]
    assert check["test"][0] in {"CMD", "CMD-SHELL"}
    assert len(check["test"]) > 1
    assert all(seconds(check[name]) > 0 for name in ("interval", "timeout", "start_period"))


@pytest.mark.parametrize("service", sorted(ONE_SHOT))
def test_one_shot_services_end(service: str) -> None:
    """What runs once is neither started again nor asked for its health."""
    assert SERVICES[service]["restart"] == "no"
    assert SERVICES[service]["healthcheck"] == {"disable": True}


@pytest.mark.parametrize("service", SERVICES)
def test_dependencies_exist_and_can_be_met(service: str) -> None:
    """A service waits for services of this file only, and for their health only if they report it."""
    for target, how in SERVICES[service].get("depends_on", {}).items():
        assert target in SERVICES
        expected = "service_completed_successfully" if target in ONE_SHOT else "service_healthy"
        assert how == {"condition": expected}


def test_workers_start_when_everything_they_need_is_there() -> None:
    """A worker waits for Kafka, Redis and the topics."""
    assert set(SERVICES["worker"]["depends_on"]) == {"kafka", "redis", "topics"}


def test_workers_can_be_scaled() -> None:
    """Nothing of a worker, no name and no port of the host, can only be had once."""
    assert not {"container_name", "ports", "hostname"} & set(SERVICES["worker"])


def test_workers_have_the_time_to_stop() -> None:
    """Docker kills a worker only after the worker's own deadline for stopping."""
    assert seconds(SERVICES["worker"]["stop_grace_period"]) > Settings.model_fields["stop_within"].default


@pytest.mark.parametrize(
    ("service", "port"), [(service, port) for service in SERVICES for port in SERVICES[service].get("ports", [])]
)
def test_published_ports_are_on_loopback(service: str, port: str) -> None:
    """Kafka and Redis ask for no password here, so they are not to be reached from other machines."""
    assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port)


@pytest.mark.parametrize("service", SERVICES)
def test_services_are_confined(service: str) -> None:
    """No service can gain privileges or keeps a capability; only Kafka's image must write beside its program."""
    assert SERVICES[service]["security_opt"] == ["no-new-privileges:true"]
    assert SERVICES[service]["cap_drop"] == ["ALL"]
    assert SERVICES[service].get("read_only", False) is (service != "kafka")


def test_what_must_last_is_on_named_volumes() -> None:
    """Kafka's log, Redis's state and Prometheus's series outlive their containers; each volume is used once."""
    named = [
        mount.partition(":")[0]
        for service in SERVICES.values()
        for mount in service.get("volumes", [])
        if not mount.startswith(".")
    ]
    assert sorted(named) == sorted(COMPOSE["volumes"])
    assert any(
        mount.endswith(f":{SERVICES['kafka']['environment']['KAFKA_LOG_DIRS']}")
        for mount in SERVICES["kafka"]["volumes"]
    )


def test_mounted_folders_exist() -> None:
    """Docker would make an empty folder of a mistyped one."""
    mounts = [mount for service in SERVICES.values() for mount in service.get("volumes", []) if mount.startswith(".")]
    assert mounts
    for mount in mounts:
        source, _, mode = mount.rsplit(":", 2)
        assert (ROOT / source).is_dir()
        assert mode == "ro"


def test_redis_keeps_what_it_is_told() -> None:
    """Redis writes to disk each second, and refuses writes rather than evict a customer."""
    command = SERVICES["redis"]["command"]
    given = dict(zip(command[1::2], command[2::2], strict=True))
    assert given == {
        "--appendonly": "yes", "--appendfsync": "everysec", "--maxmemory-policy": "noeviction", "--save": "",
    }  # fmt: skip


def test_kafka_is_reached_from_containers_and_from_the_host() -> None:
    """Kafka advertises to containers the address they are given, and to the host the default of segmenter."""
    environment = SERVICES["kafka"]["environment"]
    advertised = dict(each.split("://") for each in environment["KAFKA_ADVERTISED_LISTENERS"].split(","))
    listeners = dict(each.split("://") for each in environment["KAFKA_LISTENERS"].split(","))
    assert advertised["INTERNAL"] == settings_in_compose("worker")["broker"] == settings_in_compose("topics")["broker"]
    assert advertised["HOST"] == Settings.model_fields["broker"].default
    for name, address in advertised.items():
        assert listeners[name] == ":" + address.rpartition(":")[2]
    assert f"{advertised['HOST']}:{listeners['HOST'].removeprefix(':')}" in SERVICES["kafka"]["ports"]
    protocols = dict(each.split(":") for each in environment["KAFKA_LISTENER_SECURITY_PROTOCOL_MAP"].split(","))
    assert set(protocols) == set(listeners)


# Settings -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["docker-compose.yml", "deploy/Dockerfile", "deploy/prometheus/alerts.yml"])
def test_every_variable_is_a_setting(path: str) -> None:
    """A variable that no setting reads would be ignored in silence."""
    named = {name.lower() for name in VARIABLE.findall((ROOT / path).read_text(encoding="utf-8"))}
    assert named
    assert named <= set(Settings.model_fields)


@pytest.mark.parametrize("service", ["worker", "topics"])
def test_given_settings_are_valid(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings of the image and of Compose together are accepted, and a worker listens for Prometheus."""
    for name in Settings.model_fields:
        monkeypatch.delenv(ENV_PREFIX + name.upper(), raising=False)
    given: dict[str, Any] = settings_in_compose(service)
    settings = Settings(**given)
    assert (settings.http_host, settings.http_port) == ("0.0.0.0", int(last("EXPOSE")))


def test_no_secret_is_written_down() -> None:
    """The address of Redis can be given from outside, and what stands here has no password."""
    assert SERVICES["worker"]["environment"]["SEGMENTER_REDIS"].startswith("${SEGMENTER_REDIS:-")
    assert "@" not in settings_in_compose("worker")["redis"]


# Dockerfile ---------------------------------------------------------------------------------------------------------


def test_base_images_are_pinned() -> None:
    """Each stage builds on an exact version or on an earlier stage."""
    earlier: set[str] = set()
    for stage in STAGES:
        image, _, alias = stage[0][1].partition(" AS ")
        assert image in earlier or EXACT_IMAGE.fullmatch(image)
        earlier.add(alias)


def test_dependencies_are_installed_from_the_lock_file() -> None:
    """Nothing enters the environment that the lock file does not name with its hash, but the project itself."""
    runs = [rest for stage in STAGES for name, rest in stage if name == "RUN"]
    into_environment = [
        command.strip() for run in runs for command in run.split("&&") if command.strip().startswith("pip --python")
    ]
    assert len(into_environment) == 2
    assert into_environment[0].endswith("install --require-hashes -r requirements.lock")
    assert " --no-deps --no-index " in into_environment[1]


def test_image_runs_as_an_ordinary_user() -> None:
    """The final stage ends as a user other than root, given by number."""
    user, _, group = last("USER").partition(":")
    assert int(user) > 0
    assert int(group) > 0


def test_nothing_is_fetched_past_the_lock_file() -> None:
    """No instruction downloads anything by itself."""
    for stage in STAGES:
        for name, rest in stage:
            assert name != "ADD"
            assert not re.search(r"https?://|\b(curl|wget|apt-get|apt)\b", rest)


def test_image_is_a_worker_unless_told_otherwise() -> None:
    """The image runs any command of segmenter, `worker` by default, and stops on the signal that a worker obeys."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    assert json.loads(last("ENTRYPOINT"))[0] in scripts
    assert json.loads(last("ENTRYPOINT")) + json.loads(last("CMD")) == ["segmenter", "worker"]
    assert last("STOPSIGNAL") == "SIGTERM"


def test_image_and_compose_check_health_alike() -> None:
    """There is one health check, of /healthz, which is Python that compiles, for the image has no curl."""
    command = last("HEALTHCHECK").partition("CMD ")[2]
    check = SERVICES["worker"]["healthcheck"]
    assert ["CMD", *json.loads(command)] == check["test"]
    options = dict(word.removeprefix("--").split("=") for word in last("HEALTHCHECK").partition(" CMD")[0].split())
    assert options == {name.replace("_", "-"): str(value) for name, value in check.items() if name != "test"}
    compile(check["test"][-1], "healthcheck", "exec")
    assert "/healthz" in check["test"][-1]


def test_builder_is_sent_what_it_copies_and_little_else() -> None:
    """.dockerignore keeps everything out but what the Dockerfile copies, so no .env or history gets into a layer."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    copied = {
        source
        for stage in STAGES
        for name, rest in stage
        if name == "COPY" and "--from" not in rest
        for source in rest.split()[:-1]
    }
    assert patterns[0] == "*"
    assert {pattern[1:] for pattern in patterns if pattern.startswith("!")} == copied
    assert all((ROOT / source).exists() for source in copied)


# Prometheus ---------------------------------------------------------------------------------------------------------


def test_prometheus_finds_every_worker() -> None:
    """Prometheus asks the name of the workers' service for all addresses, at the port they listen on."""
    config = read_yaml(PROMETHEUS / "prometheus.yml")
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    (found,) = jobs["segmenter"]["dns_sd_configs"]
    assert found["names"] == ["worker"]
    assert "worker" in SERVICES
    assert (found["type"], found["port"]) == ("A", int(settings_in_compose("worker")["http_port"]))
    assert config["rule_files"] == ["alerts.yml"]


@pytest.mark.parametrize("name", ALERTS)
def test_alerts_say_what_to_do(name: str) -> None:
    """Every alert has a severity, a while for which it must hold, a summary of one line and a description."""
    rule = ALERTS[name]
    assert set(rule) - {"keep_firing_for"} == {"alert", "expr", "for", "labels", "annotations"}
    assert seconds(rule["for"]) > 0
    assert rule["labels"] in [{"severity": severity} for severity in ("info", "warning", "critical")]
    assert set(rule["annotations"]) == {"summary", "description"}
    assert len(rule["annotations"]["summary"]) < 100 < len(rule["annotations"]["description"])


@pytest.mark.parametrize("name", ALERTS)
def test_alerts_name_metrics_that_exist(name: str) -> None:
    """An expression uses samples that workers expose; a text may also name a histogram as a whole."""
    families = {sample.removesuffix("_bucket") for sample in SAMPLES}
    rule = ALERTS[name]
    assert set(METRIC.findall(rule["expr"])) <= set(SAMPLES)
    assert set(METRIC.findall(" ".join(rule["annotations"].values()))) <= set(SAMPLES) | families
    assert re.findall(r'job="(\w+)"', rule["expr"]) in ([], ["segmenter"])


def test_alert_tests_use_series_that_exist() -> None:
    """The series by which alerts are tested have the names and the labels of real ones."""
    foreign = {"up": set[str](), "process_start_time_seconds": set[str]()}
    tried = 0
    for test in read_yaml(PROMETHEUS / "alerts_test.yml")["tests"]:
        for given in test["input_series"]:
            name, _, selector = given["series"].partition("{")
            labels = set(re.findall(r"(\w+)=", selector))
            assert labels == {**SAMPLES, **foreign}[name] | {"job", "instance"}, given["series"]
            tried += 1
    assert tried


@pytest.mark.parametrize("name", ALERTS)
def test_alerts_are_tested_both_ways(name: str) -> None:
    """For each alert there is a case in which it fires and one in which it does not."""
    cases = [
        bool(case.get("exp_samples"))
        for test in read_yaml(PROMETHEUS / "alerts_test.yml")["tests"]
        for case in test["promql_expr_test"]
        if f'alertname="{name}"' in case["expr"]
    ]
    assert set(cases) == {True, False}
