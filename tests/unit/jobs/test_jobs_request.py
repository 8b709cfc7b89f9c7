"""What `submit` makes of its options, of the site's file, and of what the run was given to before."""

import argparse
from pathlib import Path

import pytest

from moe_cluster.errors import JobError
from moe_cluster.job import Resources
from moe_cluster.records import JobRecord
from moe_cluster.sites import Site, Sites, read_sites, sites_file
from moe_train.config.load import load_recipe
from moe_train.errors import LayoutError, UsageError
from moe_train.jobs.request import Request, add_options, request
from moe_train.launch import allowed_workers

RECIPE = "recipes/switch/tiny.yaml"


def asked(*words: str, sites: Sites | None = None, last: JobRecord | None = None) -> Request:
    parser = argparse.ArgumentParser(allow_abbrev=False, exit_on_error=False)
    add_options(parser)
    return request(parser.parse_args(words), sites or Sites(), last)


def record(cluster: str = "slurm", **changed: object) -> JobRecord:
    given = {
        "resources": Resources(nodes=4, workers_per_node=2),
        "options": {"partition": "old"},
        "max_restarts": 7,
    }
    return JobRecord(cluster=cluster, id="1", time=0.0, user="u", host="h", **(given | changed))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        *(("90", 90), ("45m", 45), ("12h", 720), ("2d", 2880)),
        *(("24:00:00", 1440), ("1-00:00:00", 1440), ("100:00:00", 6000), ("90:30", 91), ("0:01", 1)),
        *(("1-12", 2160), ("1-12:30", 2190), ("0-00:30:01", 31)),
    ],
)
def test_a_time_limit_is_minutes_whatever_its_unit(text: str, minutes: int) -> None:
    assert asked("--time-limit", text).resources.time_limit_min == minutes


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--nodes", "4:2"], "use 2:4"),
        (["--nodes", "0"], "at least 1"),
        (["--nodes", "1:2:3"], "MIN:MAX"),
        (["--time-limit", "soon"], "hours (12h)"),
        *(
            (
                ["--time-limit", text],
                "is not a time limit; use minutes (90), hours (12h), days (2d), or Slurm's",
            )
            for text in (
                "0",
                "00:00:00",
                "1-24:00",
                "10:60",
                "1:60:00",
                "1:2:3:4",
                "1-",
                "12h30",
                "UNLIMITED",
            )
        ),
        (["--env", "GREETING"], "is not NAME=VALUE"),
        (["--env", "2=a"], "letters, digits and _"),
        (["--setup", " "], "give a shell command"),
        (["--option", "partition"], "is not KEY=VALUE"),
        (["--workers-per-node", "0"], "at least 1"),
        (["--cpus-per-worker", "0"], "at least 1"),
        (["--gpus-per-worker", "-1"], "at least 0"),
        *((["--memory", text], "is not an amount of memory") for text in ("nan", "inf", "0", "-1", "8G")),
    ],
)
def test_an_option_that_is_no_such_value_is_refused_with_the_way_out(words: list[str], part: str) -> None:
    with pytest.raises(argparse.ArgumentError, match=None) as refused:
        asked(*words)
    assert part in str(refused.value)


def test_what_is_asked_for_goes_before_the_last_job_and_that_before_the_site() -> None:
    sites = Sites("slurm", {"slurm": Site(options={"partition": "site", "account": "site", "qos": "site"})})
    last = record(options={"partition": "last", "account": "last"})
    found = asked("--option", "partition=now", sites=sites, last=last)
    assert found.options == {"partition": "now", "account": "last", "qos": "site"}
    assert (found.resources, found.max_restarts) == (Resources(nodes=4, workers_per_node=2), 7)


def test_another_backend_starts_from_the_site_alone() -> None:
    found = asked("--cluster", "ray", last=record())
    assert (found.resources.nodes, dict(found.options), found.max_restarts) == (1, {}, 3)


def test_the_last_job_is_asked_for_again_with_fewer_nodes() -> None:
    found = asked("--nodes", "2", last=record())
    assert (found.cluster, found.resources) == ("slurm", Resources(nodes=2, workers_per_node=2))


def test_directives_of_the_last_job_follow_those_that_the_site_has_today() -> None:
    sites = Sites("slurm", {"slurm": Site(directives=("--mail-type=END", "--requeue"))})
    last = record(directives=("--exclusive",))
    again, changed = asked(sites=sites, last=last), asked("--directive=--nice", sites=sites, last=last)
    assert (again.directives, changed.directives) == (("--exclusive",), ("--nice",))
    job = again.spec(load_recipe(RECIPE), Path("r.yaml"), Path("/r"), "auto", [])
    assert job.directives == ("--mail-type=END", "--requeue", "--exclusive")


def test_the_job_is_a_command_with_the_workers_of_all_nodes() -> None:
    found = asked("--nodes", "1:2", "--workers-per-node", "2", "--max-restarts", "5")
    spec = found.spec(load_recipe(RECIPE), Path("/r/jobs/recipe-1.yaml"), Path("/r"), "auto", ["12"])
    assert spec.command == (
        *("run", "/r/jobs/recipe-1.yaml", "--run-dir", "/r", "--resume", "auto"),
        *("--workers", "2:4", "--max-restarts", "5"),
    )
    assert (spec.name, spec.after) == ("switch-tiny", ("12",))


def test_a_layout_that_does_not_fit_is_refused_before_anything_is_queued() -> None:
    recipe = load_recipe(RECIPE, ["parallel.expert=3"])
    with pytest.raises(LayoutError, match=r"parallel.expert=3"):
        asked("--nodes", "2").spec(recipe, Path("r.yaml"), Path("/r"), "auto", [])


def test_a_run_shrinks_only_to_whole_tensor_groups() -> None:
    recipe = load_recipe(RECIPE, ["parallel.tensor=2"])
    assert allowed_workers(recipe, 8, 1) == (2, 4, 8)
    assert allowed_workers(load_recipe(RECIPE), 8, 1) == (1, 2, 4, 8)
    with pytest.raises(
        LayoutError, match=r"parallel\.tensor=2: must divide the number of workers, which is 3"
    ):
        asked("--nodes", "1:3").spec(recipe, Path("r.yaml"), Path("/r"), "auto", [])


@pytest.mark.parametrize(
    ("nodes", "fits"), [("1:4", "2:4"), ("1:2", "2"), ("3:4", "4")], ids=["more", "all", "no divisor"]
)
def test_a_job_that_could_not_continue_on_its_least_nodes_is_refused(nodes: str, fits: str) -> None:
    """On fewer workers than a tensor group has, or than share the batch, its launcher would have no layout."""
    recipe = load_recipe(RECIPE, ["parallel.tensor=4"])
    words = ("--nodes", nodes, "--workers-per-node", "2")
    with pytest.raises(UsageError, match=rf"--nodes {nodes}: .*parallel\.tensor=4: must divide") as refused:
        asked(*words).spec(recipe, Path("r.yaml"), Path("/r"), "auto", [])
    assert str(refused.value).endswith(f"use --nodes {fits}")
    spec = asked("--nodes", fits, *words[2:]).spec(recipe, Path("r.yaml"), Path("/r"), "auto", [])
    assert "--workers" in spec.command


def test_a_recipe_for_gpus_that_asks_the_cluster_for_none_is_refused() -> None:
    recipe = load_recipe(RECIPE, ["job.device=cuda"])
    with pytest.raises(UsageError, match="add --gpus-per-worker 1"):
        asked("--cluster", "slurm").spec(recipe, Path("r.yaml"), Path("/r"), "auto", [])
    asked("--cluster", "slurm", "--gpus-per-worker", "1").spec(recipe, Path("r.yaml"), Path("/r"), "auto", [])


def test_a_site_file_is_read_from_where_the_environment_says(tmp_path: Path) -> None:
    path = sites_file({"XDG_CONFIG_HOME": str(tmp_path)})
    assert path == tmp_path / "moe-train/cluster.yaml"
    assert sites_file({"HOME": "/home/u"}) == Path("/home/u/.config/moe-train/cluster.yaml")
    assert read_sites(path) == Sites()
    path.parent.mkdir()
    path.write_text("default: slurm\nslurm: {options: {partition: 7}, setup: [module load cuda]}\n")
    found = read_sites(path)
    assert found.default == "slurm"
    assert found.of("slurm") == Site(options={"partition": "7"}, setup=("module load cuda",))
    assert found.of("ray") == Site()


def test_a_site_file_keeps_its_values_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(
        "slurm:\n  options: {account: 007, qos: on, time: 12:30:00}\n"
        "  environment: {MODE: off, LIMIT: 1e5, EMPTY: ''}\n  setup: [yes, 010]\n"
    )
    site = read_sites(path).of("slurm")
    assert site.options == {"account": "007", "qos": "on", "time": "12:30:00"}
    assert site.environment == {"MODE": "off", "LIMIT": "1e5", "EMPTY": ""}
    assert site.setup == ("yes", "010")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("default: pbs", "default=pbs: must be one of local, ray, slurm"),
        ("slrum: {}", "slrum: there is no such key"),
        ("slurm: [1]", "slurm: must be a mapping"),
        ("slurm: {partition: gpu}", "keys among options, directives, environment, setup"),
        ("slurm: {options: [gpu]}", "slurm.options=['gpu']: must be a mapping"),
        ("slurm: {setup: module load}", "slurm.setup='module load': must be a list of lines"),
        ("default: [slurm]", "default=['slurm']: must be one of local, ray, slurm"),
        ("slurm: {options: {partition: [a]}}", "slurm.options: partition=['a']: must be text or a number"),
        ("slurm: {environment: {A: null}}", "slurm.environment: A=None: must be text or a number"),
        ("slurm: {setup: [{a: b}]}", "slurm.setup: {'a': 'b'}: must be text"),
        ("- a", "must be a mapping"),
        ("{", "cannot be read as YAML"),
    ],
)
def test_a_site_file_that_cannot_be_used_names_the_key(tmp_path: Path, text: str, part: str) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    with pytest.raises(JobError) as refused:
        read_sites(path)
    assert str(path) in str(refused.value)
    assert part in str(refused.value)


def test_variables_and_setup_of_a_job_follow_the_sites_and_are_asked_for_again() -> None:
    sites = Sites("slurm", {"slurm": Site(environment={"A": "site", "B": "site"}, setup=("module load a",))})
    last = record(environment={"B": "last", "C": "last"}, setup=("module load b",))
    again = asked("--env", "C=now", sites=sites, last=last)
    job = again.spec(load_recipe(RECIPE), Path("r.yaml"), Path("/r"), "auto", [])
    assert job.environment == {"A": "site", "B": "last", "C": "now"}
    assert job.setup == ("module load a", "module load b")
    assert asked("--setup", "source x", last=last).setup == ("source x",)
    assert (again.environment, again.setup) == ({"B": "last", "C": "now"}, ("module load b",))


def test_a_secret_is_no_variable_of_a_job() -> None:
    with pytest.raises(JobError, match="WANDB_API_KEY: looks like a secret"):
        asked("--env", "WANDB_API_KEY=a").spec(load_recipe(RECIPE), Path("r"), Path("/r"), "auto", [])
