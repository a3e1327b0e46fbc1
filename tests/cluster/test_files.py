"""What an operator applies: manifests fit their schemas to the last field, nobody has more rights than needed, commands
parse, and names are the same everywhere."""

import json
import os
import re
import shlex
import shutil
import string
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml

from tests.cluster.kustomize import Document, documents, resolved
from tests.conftest import ROOT
from unet import __version__
from unet.command_line import parse
from unet.runtime.memory import RETAINING
from unet.runtime.telemetry import MEASURES
from unet.segment.settings import SegmentSettings
from unet.train.settings import TrainSettings

CLUSTER = ROOT / "cluster"
OVERLAYS = ("local", "gpu")
JOBS = {"segment.py": SegmentSettings, "train.py": TrainSettings}


def overlay(name: str) -> list[Document]:
    return resolved(CLUSTER / "kuberay" / "overlays" / name)


def with_raycronjob(folder: Path) -> Path:
    """Copy the manifests; return the copy of the overlay gpu, with the component raycronjob added."""
    shutil.copytree(CLUSTER / "kuberay", folder / "kuberay")
    made = folder / "kuberay" / "overlays" / "gpu"
    plan = made / "kustomization.yaml"
    plan.write_text(plan.read_text() + "  - ../../raycronjob\n")
    return made


@pytest.fixture(scope="session")
def schemas() -> dict[str, jsonschema.Draft202012Validator]:
    """Return KubeRay's schemas, by kind."""
    folder = Path(os.environ.get("KUBERAY_CRDS", ROOT.parent / "shared" / "kuberay-crds"))
    if not folder.is_dir():
        pytest.skip(f"no CRDs of KubeRay in {folder}; KUBERAY_CRDS names another folder")
    found = {}
    for file in folder.glob("*.yaml"):
        (definition,) = documents(file)
        (version,) = [item for item in definition["spec"]["versions"] if item["name"] == "v1"]
        schema = strict(version["schema"]["openAPIV3Schema"])
        found[definition["spec"]["names"]["kind"]] = jsonschema.Draft202012Validator(schema)
    return found


def strict(schema: Any) -> Any:
    """Return the schema, in which a field that is not named is an error. Kubernetes itself would drop it silently."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: strict(item) for name, item in schema.items()}
    if isinstance(schema.get("properties"), dict) and "type" in schema and "additionalProperties" not in schema:
        made["additionalProperties"] = False
    return made


def objects(value: Any) -> Iterator[Document]:
    """Yield every mapping in `value`."""
    if isinstance(value, dict):
        yield value
        for item in value.values():
            yield from objects(item)
    elif isinstance(value, list):
        for item in value:
            yield from objects(item)


def pods(manifests: list[Document]) -> list[Document]:
    """Return every pod's specification."""
    return [item for item in objects(manifests) if isinstance(item.get("containers"), list)]


@pytest.mark.parametrize("name", OVERLAYS)
def test_what_kuberay_reads_fits_its_schema(name: str, schemas: dict[str, Any]) -> None:
    read = [item for item in overlay(name) if item["apiVersion"].startswith("ray.io/")]
    assert {item["kind"] for item in read} == {"RayCluster", "RayJob"}
    for item in read:
        schemas[item["kind"]].validate(item)


def test_the_alpha_schedule_fits_its_schema(tmp_path: Path, schemas: dict[str, Any]) -> None:
    manifests = resolved(with_raycronjob(tmp_path))
    (item,) = [item for item in manifests if item["kind"] == "RayCronJob"]
    schemas["RayCronJob"].validate(item)
    assert [item["metadata"]["name"] for item in manifests if item["kind"] == "CronJob"] == ["unet-train"]
    (job,) = [item for item in manifests if item["kind"] == "RayJob" and item["metadata"]["name"] == "unet-segment"]
    assert item["spec"]["jobTemplate"] | {"suspend": True} == job["spec"]


def test_a_field_that_kuberay_does_not_know_is_an_error(schemas: dict[str, Any]) -> None:
    for item in overlay("gpu"):
        if item["kind"] == "RayCluster":
            item["spec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["resource"] = {}
            with pytest.raises(jsonschema.ValidationError, match="resource"):
                schemas["RayCluster"].validate(item)


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_rest_fits_the_schemas_of_kubernetes(name: str) -> None:
    kubernetes = pytest.importorskip("kubernetes_validate")
    for item in overlay(name):
        if not item["apiVersion"].startswith("ray.io/"):
            kubernetes.validate(item, "1.30", strict=True)


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_tests_resolve_overlays_as_kubectl_does(name: str, tmp_path: Path) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl")
    for folder in (CLUSTER / "kuberay" / "overlays" / name, with_raycronjob(tmp_path)):
        made = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True)
        assert made.returncode == 0, made.stderr
        theirs = [item for item in yaml.safe_load_all(made.stdout) if item]
        assert sorted(map(json.dumps, map(ordered, theirs))) == sorted(map(json.dumps, map(ordered, resolved(folder))))


def ordered(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: ordered(item) for name, item in sorted(value.items())}
    return [ordered(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("name", OVERLAYS)
def test_no_pod_may_more_than_it_needs(name: str) -> None:
    found = pods(overlay(name))
    assert len(found) == 10  # three clusters of head and workers, two submitters, two schedules
    for pod in found:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] >= 1000
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        assert all("hostPath" not in volume for volume in pod.get("volumes", ()))
        for container in pod["containers"] + pod.get("initContainers", []):
            assert_confined(container["securityContext"])
            assert set(container["resources"]) == {"requests", "limits"}
            assert {"cpu", "memory"} <= set(container["resources"]["limits"])
            assert all("hostPort" not in port for port in container.get("ports", ()))
    for cluster in clusters(overlay(name)):
        assert_confined(cluster["autoscalerOptions"]["securityContext"])


def assert_confined(context: Document) -> None:
    assert context["allowPrivilegeEscalation"] is False
    assert context["readOnlyRootFilesystem"] is True
    assert context["runAsNonRoot"] is True
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert "privileged" not in context


def clusters(manifests: list[Document]) -> list[Document]:
    return [item for item in objects(manifests) if "headGroupSpec" in item]


@pytest.mark.parametrize("name", OVERLAYS)
def test_clusters_ask_for_a_token_and_are_made_as_the_design_says(name: str) -> None:
    found = clusters(overlay(name))
    assert len(found) == 3
    for cluster in found:
        assert cluster["rayVersion"] == ray.__version__
        assert cluster["authOptions"] == {"mode": "token"}
        assert cluster["enableInTreeAutoscaling"] is True
        assert cluster["autoscalerOptions"]["version"] == "v2"
        assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        assert [group["groupName"] for group in cluster["workerGroupSpecs"]] == ["gpu" if name == "gpu" else "cpu"]
        for group in cluster["workerGroupSpecs"]:
            assert group["minReplicas"] == 0
            (pod,) = pods([group])
            assert pod["terminationGracePeriodSeconds"] > 30
            (container,) = pod["containers"]
            assert "drain-node" in container["lifecycle"]["preStop"]["exec"]["command"][2]
            assert RETAINING.items() <= {item["name"]: item["value"] for item in container["env"]}.items()
        for pod in pods([cluster]):
            mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
            (shm,) = [volume for volume in pod["volumes"] if mounts[volume["name"]] == "/dev/shm"]
            assert shm["emptyDir"]["medium"] == "Memory"
            assert pod["restartPolicy"] == "Never"


def test_gpus_are_on_spot_machines_and_the_head_is_not() -> None:
    for cluster in clusters(overlay("gpu")):
        head, (gpu,) = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
        assert "on-demand" in head["template"]["spec"]["nodeSelector"].values()
        spec = gpu["template"]["spec"]
        assert "spot" in spec["nodeSelector"].values()
        assert {"nvidia.com/gpu", "spot"} == {item["key"] for item in spec["tolerations"]}
        assert spec["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"


@pytest.mark.parametrize("name", OVERLAYS)
def test_nothing_is_reachable_but_what_a_policy_names(name: str) -> None:
    policies = {item["metadata"]["name"]: item["spec"] for item in overlay(name) if item["kind"] == "NetworkPolicy"}
    deny = policies.pop("default-deny")
    assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    opened = {
        port: {policy for policy, spec in policies.items() for rule in spec.get("ingress", ()) if opens(rule, port)}
        for port in (8265, 6379, 10001)
    }
    assert opened == {8265: {"jobs-api"}, 6379: {"ray-nodes"}, 10001: set()}
    for spec in policies.values():
        assert all(rule["from"] for rule in spec.get("ingress", ()))


@pytest.mark.parametrize("name", OVERLAYS)
def test_names_are_asked_of_the_cluster_and_of_the_cache_of_the_node(name: str) -> None:
    (policy,) = [item for item in overlay(name) if item["metadata"]["name"] == "names"]
    (rule,) = policy["spec"]["egress"]
    assert {port["port"] for port in rule["ports"]} == {53}
    assert {"ipBlock": {"cidr": "169.254.20.10/32"}} in rule["to"]  # NodeLocal DNSCache is no pod to a policy
    assert all(rule["to"])


def opens(rule: Document, port: int) -> bool:
    if "ports" not in rule:
        return True
    return any(item["port"] <= port <= item.get("endPort", item["port"]) for item in rule["ports"])


def test_no_manifest_holds_a_secret() -> None:
    for file in CLUSTER.rglob("*"):
        if file.is_file() and file.suffix in (".yaml", ".json", ".service", ".timer", ""):
            text = file.read_text()
            assert not re.search(r"AKIA[0-9A-Z]{16}|BEGIN [A-Z ]*PRIVATE KEY|kind: Secret\b", text), file
            assert not re.search(r"(SECRET_ACCESS_KEY|AUTH_TOKEN|PASSWORD)\s*[:=]\s*\S", text), file


@pytest.mark.parametrize("name", OVERLAYS)
def test_commands_parse_as_the_jobs_parse_them(name: str) -> None:
    manifests = overlay(name)
    (site,) = [item["data"] for item in manifests if item["kind"] == "ConfigMap"]
    jobs = [item for item in manifests if item["kind"] == "RayJob"]
    assert {item["metadata"]["name"] for item in jobs} == {"unet-segment", "unet-train"}
    for job in jobs:
        assert (job["spec"]["suspend"], job["spec"]["backoffLimit"]) == (True, 0)
        settings = parsed(string.Template(job["spec"]["entrypoint"]).substitute(site))
        assert settings.gpu == (name == "gpu")
        assert settings.worker_range
    for schedule in [item for item in manifests if item["kind"] == "CronJob"]:
        (pod,) = pods([schedule])
        assert pod["containers"][0]["command"][2] == schedule["metadata"]["name"]
        assert schedule["spec"]["concurrencyPolicy"] == "Forbid"


def parsed(command: str) -> Any:
    python, job, *flags = shlex.split(command)
    assert python == "python"
    return parse(JOBS[Path(job).name], flags)


def test_the_unit_submits_a_command_that_parses() -> None:
    text = (CLUSTER / "systemd" / "unet-segment.service").read_text().replace("\\\n", " ").replace("%%", "%")
    (line,) = re.findall(r"^ExecStart=(.*)$", text, re.M)
    command = line.split(" -- ")[1]
    parsed("python " + re.sub(r"\$\{(\w+)\}", r"s3://\1/x", command))
    assert "--time-limit" in command
    assert "SuccessExitStatus=143" in text.splitlines(), "a run that its time limit ends has not failed"


@pytest.mark.parametrize("name", OVERLAYS)
def test_what_a_site_changes_is_in_one_place(name: str) -> None:
    """No other file of the manifests has an image's registry, a bucket, a role or the namespace of the site."""
    for item in pods(overlay(name)):
        for container in item["containers"]:
            assert re.fullmatch(rf"registry\.example\.com/unet:{re.escape(__version__)}-[cg]pu", container["image"])
    for item in overlay(name):
        if item["kind"] == "ServiceAccount" and "annotations" in item["metadata"]:
            assert item["metadata"]["annotations"] == {
                "eks.amazonaws.com/role-arn": "arn:aws:iam::000000000000:role/unet-example"
            }
    for file in (CLUSTER / "kuberay").rglob("*.yaml"):
        if file.parent.name != "site":
            assert not re.search(r"s3://|arn:aws|registry\.|\b[0-9]{12}\b", file.read_text()), file


def test_the_policy_allows_what_the_jobs_need_and_nothing_else() -> None:
    policy = json.loads((CLUSTER / "aws" / "policy.json").read_text())
    images, results = "arn:aws:s3:::example-images", "arn:aws:s3:::example-results"
    allowed = {
        (action, resource)
        for item in policy["Statement"]
        for action in listed(item["Action"])
        for resource in listed(item["Resource"])
        if item["Effect"] == "Allow"
    }
    assert allowed == {
        ("s3:ListBucket", images),
        ("s3:ListBucket", results),
        ("s3:GetObject", f"{images}/*"),
        ("s3:GetObject", f"{results}/*"),
        ("s3:PutObject", f"{results}/*"),
        ("s3:DeleteObject", f"{results}/masks/_segment/ledger/*"),
    }
    head = json.loads((CLUSTER / "aws" / "head-policy.json").read_text())
    for item in head["Statement"]:
        assert "*" not in "".join(listed(item["Action"]))
        assert item["Resource"] != "*" or all(action.startswith("ec2:Describe") for action in listed(item["Action"]))


def listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def test_ray_up_reads_its_file() -> None:
    (config,) = documents(CLUSTER / "aws" / "cluster.yaml")
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(config, schema)
    types = config["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0}
    assert types["gpu"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert (types["gpu"]["min_workers"], types["cpu"]["min_workers"]) == (0, 0)
    assert "InstanceMarketOptions" not in types["head"]["node_config"]
    assert {kind: item["node_config"]["IamInstanceProfile"]["Name"] for kind, item in types.items()} == {
        "head": "unet-head",
        "cpu": "unet-worker",
        "gpu": "unet-worker",
    }
    for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert {"RAY_AUTH_MODE=token", "RAY_worker_niceness=0"} <= set(re.split(r"[ ;]", " ".join(config[commands])))
    assert all(f"{name}={value}" in " ".join(config["worker_start_ray_commands"]) for name, value in RETAINING.items())
    assert "--dashboard-host=127.0.0.1" in " ".join(config["head_start_ray_commands"])


def test_rules_and_dashboard_name_what_is_exported() -> None:
    exported = {name for measure in MEASURES for name in measure.exported}
    (rules,) = documents(CLUSTER / "observability" / "rules.yaml")
    dashboard = json.loads((CLUSTER / "observability" / "dashboard.json").read_text())
    alerts = [rule for group in rules["groups"] for rule in group["rules"]]
    asked = [rule["expr"] for rule in alerts]
    shown = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    shown += [item["query"] for item in dashboard["templating"]["list"]]
    assert named(asked) | named(shown) <= exported
    assert {name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count") for name in exported} == {
        name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count") for name in named(shown)
    }
    assert all({"summary", "description"} <= rule["annotations"].keys() for rule in alerts)
    assert any("26 * 3600" in expression for expression in asked)


def named(expressions: list[str]) -> set[str]:
    return {name for expression in expressions for name in re.findall(r"\bray_\w+", expression)}


def test_the_image_is_pinned_and_not_roots() -> None:
    lines = (CLUSTER / "image" / "Dockerfile").read_text()
    assert "--constraint constraints.txt" in lines
    assert re.findall(r"^USER (\d+)", lines, re.M) == ["1000"]
    assert "latest" not in lines
    assert set(re.findall(r"unet:(\S+)-[cg]pu", lines)) == {__version__}
    assert re.search(r"^ENV (.*\\\n)*.*\bRAY_worker_niceness=0$", lines, re.M)


def test_the_image_has_what_the_package_is_built_of() -> None:
    before, _ = (CLUSTER / "image" / "Dockerfile").read_text().split("RUN pip install")
    copied = {Path(name).as_posix() for line in re.findall(r"^COPY (.*)$", before, re.M) for name in line.split()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    folders = project["tool"]["setuptools"]["package-dir"]
    roots = {name.split(".")[0] for name in project["tool"]["setuptools"]["packages"]}
    assert {folders.get(root, root) for root in roots} <= copied
    assert {project["project"]["readme"], *project["project"]["license-files"], "pyproject.toml"} <= copied
    allowed = {name for name in (CLUSTER / "image" / "Dockerfile.dockerignore").read_text().split() if name[0] == "!"}
    assert {f"!{name}" for name in copied - {".", "cluster"}} <= allowed
