"""Every setting: its default, its variable, what it must look like; and what may be shown."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from agent_sdk.settings import (
    read_orchestrator_settings,
    read_settings,
    sdk_settings_in_effect,
    source_of,
)
from agent_sdk.store.embedded import EmbeddedStore
from agent_sdk.store.store import Store
from broker.settings import Settings, SettingsError, broker_settings_in_effect, load_settings

SECRET = "hunter2"

EMPTY = str(Path(__file__).with_name("__init__.py"))
"""A file that is there and has no keys."""

SETTINGS = [
    ("GPU_ORCHESTRATOR_PORT", "port", 8014, "8015", 8015),
    ("GPU_ORCHESTRATOR_HOST", "bind", "127.0.0.1", "::1", "::1"),
    ("GPU_BROKER_UDS", "uds", None, "/run/gpu.sock", Path("/run/gpu.sock")),
    ("GPU_BROKER_UDS_MODE", "uds_mode", "0600", "660", "660"),
    ("GPU_BROKER_WORKERS", "workers", 1, "4", 4),
    ("GPU_BROKER_MCP", "mcp", "auto", "off", "off"),
    ("GPU_BROKER_MCP_IDLE_RELEASE_S", "mcp_idle_release_s", 600.0, "60", 60.0),
    ("GPU_BROKER_MCP_ALONE_GPUS", "mcp_alone_gpus", 1, "8", 8),
    ("GPU_BROKER_MCP_ALONE_MB", "mcp_alone_mb", 0, "40000", 40000),
    ("SAFE_MODE", "safe_mode", None, "true", True),
    ("ENABLE_NVML", "enable_nvml", None, "false", False),
    ("GPU_ORCHESTRATOR_LEASE_TTL", "lease_ttl_s", 3600, "0", 0),
    ("GPU_BROKER_DEVICES", "devices", "auto", "sim:1x1000", "sim:1x1000"),
    ("GPU_BROKER_UNIFIED_MEMORY_MB", "unified_memory_mb", None, "65536", 65536),
    ("GPU_BROKER_PCIE", "pcie", False, "true", True),
    ("GPU_BROKER_DRIVER_WAIT_S", "driver_wait_s", None, "2.5", 2.5),
    ("GPU_BROKER_DRIVER_MOST_S", "driver_most_s", 60.0, "30", 30.0),
    ("GPU_BROKER_AMD_ROOT", "amd_root", Path("/"), "/mnt/machine", Path("/mnt/machine")),
    ("GPU_BROKER_NVML_LIBRARY", "nvml_library", "", "/opt/nvidia/lib", "/opt/nvidia/lib"),
    ("GPU_BROKER_PROCESSES", "processes", "auto", "host", "host"),
    ("GPU_BROKER_MAY_KILL", "may_kill", False, "true", True),
    ("GPU_BROKER_REPORT_S", "report_s", 5.0, "0.3", 0.3),
    ("GPU_BROKER_DRAIN_ON_STOP_S", "drain_on_stop_s", 0, "600", 600.0),
    ("GPU_BROKER_METRICS_DEVICES", "metrics_devices", 1024, "16", 16),
    ("GPU_BROKER_KEYS_FILE", "keys_file", None, EMPTY, Path(EMPTY)),
    ("GPU_BROKER_KEYS", "keys", "", f"ann operator {'ab' * 32}", f"ann operator {'ab' * 32}"),
    ("LOG_FORMAT", "log_format", "text", "json", "json"),
    ("GPU_BROKER_CORS_ORIGINS", "cors_origins", "", "https://a.example", "https://a.example"),
    ("GPU_BROKER_HOOKS_ALLOW", "hooks_allow", "", "10.0.0.0/8,x", "10.0.0.0/8,x"),
    ("GPU_BROKER_HOOKS_GIVE_UP_S", "hooks_give_up_s", 86400, "60", 60),
    ("GPU_BROKER_ROOT_PATH", "root_path", "", "/gpu", "/gpu"),
]
"""Variable, field, default, what a test sets it to, what the field then is."""

SDK = [
    ("REDIS_URL", "redis_url", None, "redis://gpu-store:6379", "redis://gpu-store:6379"),
    ("GPU_BROKER_STATE_DIR", "state_dir", None, "/var/lib/gpu", Path("/var/lib/gpu")),
    ("GPU_BROKER_POOL", "pool", "default", "night-2", "night-2"),
    ("GPU_BROKER_HOSTNAME", "hostname", socket.gethostname(), "gpu_host-3", "gpu_host-3"),
    ("GPU_BROKER_TEAM", "team", "default", "lab", "lab"),
    ("GPU_BROKER_CGROUP", "cgroup", "", "/sys/fs/cgroup/gpu", "/sys/fs/cgroup/gpu"),
]
"""The same of the SDK; the default of the state folder depends on the user."""

CLIENT = [
    ("GPU_ORCHESTRATOR_URL", "url", "http://localhost:8014", "http://gpu:9", "http://gpu:9"),
    ("GPU_ORCHESTRATOR_POLICY_TTL", "policy_ttl_s", 30.0, "2.5", 2.5),
    ("GPU_BROKER_API_KEY", "api_key", None, "gbk_x", "gbk_x"),
]
"""The same of the HTTP client."""

KEY_IN = "GPU_BROKER_API_KEY_FILE"
"""The file with the last of these."""

WRONG = [
    ("GPU_ORCHESTRATOR_PORT", "0"),
    ("GPU_ORCHESTRATOR_PORT", "65536"),
    ("GPU_ORCHESTRATOR_PORT", "http"),
    ("GPU_BROKER_UDS_MODE", "0888"),
    ("GPU_BROKER_UDS_MODE", "01777"),
    ("GPU_ORCHESTRATOR_LEASE_TTL", "-1"),
    ("GPU_ORCHESTRATOR_LEASE_TTL", "604801"),
    ("GPU_ORCHESTRATOR_LEASE_TTL", "1.5"),
    ("GPU_ORCHESTRATOR_LEASE_TTL", "1h"),
    ("GPU_BROKER_DRIVER_WAIT_S", "0"),
    ("GPU_BROKER_DRIVER_MOST_S", "601"),
    ("GPU_BROKER_REPORT_S", "0"),
    ("GPU_BROKER_REPORT_S", "0.09"),
    ("GPU_BROKER_REPORT_S", "61"),
    ("GPU_BROKER_REPORT_S", "nan"),
    ("GPU_BROKER_REPORT_S", "inf"),
    ("GPU_BROKER_REPORT_S", "5s"),
    ("SAFE_MODE", "yes"),
    ("LOG_FORMAT", "xml"),
    ("ENABLE_NVML", "1"),
    ("GPU_BROKER_POOL", "Not A Pool"),
    ("GPU_BROKER_POOL", "a" * 33),
    ("GPU_BROKER_HOSTNAME", "host/3"),
    ("GPU_BROKER_HOSTNAME", "a" * 65),
    ("REDIS_URL", "localhost:6379"),
    ("REDIS_URL", "http://localhost:6379"),
    ("REDIS_URL", "redis://localhost:high"),
    ("REDIS_URL", "redis://localhost:65536"),
    ("REDIS_URL", "redis+sentinel://h1,h2"),
]

MASKED = [
    ("redis://gpu-store:6379/2", "redis://gpu-store:6379/2"),
    ("redis://user:hunter2@gpu-store:6379", "redis://user:***@gpu-store:6379"),
    ("redis://:hunter2@gpu-store", "redis://:***@gpu-store"),
    ("rediss://user:hunter2@gpu-store/1?ssl_cert_reqs=none",
     "rediss://user:***@gpu-store/1?ssl_cert_reqs=none"),
    ("redis://user:a:hunter2@gpu-store", "redis://user:***@gpu-store"),
    ("redis://user:hunter2%40x@gpu-store", "redis://user:***@gpu-store"),
    ("redis://user:/hunter2@gpu-store", "redis://user:***@gpu-store"),
    ("redis://user:hunter2@[::1]:6379", "redis://user:***@[::1]:6379"),
    ("unix://user:hunter2@/run/redis.sock?db=1", "unix://user:***@/run/redis.sock?db=1"),
    ("unix:///run/a:b@c/redis.sock", "unix:///run/a:b@c/redis.sock"),
    ("redis+sentinel://h1:26379,h2,[::1]:1/gpu/2", "redis+sentinel://h1:26379,h2,[::1]:1/gpu/2"),
    ("redis+sentinel://user:hunter2@h1:26379,h2/gpu", "redis+sentinel://user:***@h1:26379,h2/gpu"),
    ("rediss+sentinel://h1,h2/gpu?sentinel_password=hunter2&ssl_ca_certs=ca",
     "rediss+sentinel://h1,h2/gpu?sentinel_password=***&ssl_ca_certs=ca"),
    ("redis+cluster://:hunter2@h1:7000,h2", "redis+cluster://:***@h1:7000,h2"),
]  # fmt: skip
"""URLs, and how they are shown."""

LEAKING = [
    "redis://user:a@hunter2@gpu-store:6379",
    "redis://gpu-store:6379?username=user&password=hunter2",
    "unix:///run/redis.sock?password=hunter2",
    "user:hunter2@gpu-store:6379",
    "redis:/user:hunter2@gpu-store:6379",
    "redis+sentinel://user:a@hunter2@h1,h2/gpu",
    "redis+sentinel://h1:1,h2:2/gpu?sentinel_password=a@hunter2",
    "redis+cluster://user:hunter2@h1:high,h2",
    "redis+zookeeper://user:hunter2@h1,h2",
    "rediss://gpu-store?ssl_keyfile=k&ssl_password=hunter2",
]
"""URLs that redis-py takes a password from, or that miss a scheme by a slip."""


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of this shell's settings."""
    for name in [*os.environ]:
        if name.upper() in {row[0] for row in SETTINGS + SDK + CLIENT} | {"XDG_STATE_HOME", KEY_IN}:
            monkeypatch.delenv(name)


# The broker's


def test_settings_listed_here_are_all_there_are() -> None:
    """No setting is without a row in this file."""
    assert {field for _, field, *_ in SETTINGS} | {"sdk"} == set(Settings.model_fields)
    assert {s.name for s in broker_settings_in_effect()} == {row[0] for row in SETTINGS}
    assert {s.name for s in sdk_settings_in_effect({})} == {row[0] for row in SDK + CLIENT} | {
        KEY_IN
    }


def test_key_in_a_file_is_told_as_the_file_alone() -> None:
    """Its origin is to be seen, whether it can be read or not."""
    told = {s.name: (s.value, s.source) for s in sdk_settings_in_effect({KEY_IN: "/nowhere"})}
    assert told["GPU_BROKER_API_KEY"] == ("unset", "default")
    assert told[KEY_IN] == ("/nowhere", "environment")


@pytest.mark.parametrize(("variable", "field", "default", "given", "value"), SETTINGS)
def test_setting_is_its_default_until_its_variable_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    field: str,
    default: object,
    given: str,
    value: object,
) -> None:
    """Unset and empty are the default; a value is taken from the one variable of that name."""
    assert getattr(load_settings(), field) == default
    monkeypatch.setenv(variable, "")
    assert getattr(load_settings(), field) == default
    monkeypatch.setenv(variable, given)
    assert getattr(load_settings(), field) == value


@pytest.mark.parametrize(("variable", "wrong"), WRONG)
def test_setting_of_a_wrong_form_is_an_error_that_names_its_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, wrong: str
) -> None:
    """One sentence, the variable's name in front."""
    monkeypatch.setenv(variable, wrong)
    with pytest.raises(SettingsError) as told:
        load_settings()
    assert str(told.value).startswith(f"{variable}=")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("bare_name", ["PORT", "BIND", "DEVICES", "LEASE_TTL_S", "REPORT_S", "SDK"])
def test_variable_that_is_not_ours_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, bare_name: str
) -> None:
    """A PORT or DEVICES that some other program's environment has is none of our business."""
    stray = {"BIND": "0.0.0.0", "DEVICES": "none"}
    stray["SDK"] = '{"redis_url": null, "state_dir": "/x", "pool": "other", "hostname": "h"}'
    before = load_settings()
    monkeypatch.setenv(bare_name, stray.get(bare_name, "7"))
    assert load_settings() == before


@pytest.mark.parametrize("variable", ["SAFE_MODE", "ENABLE_NVML"])
@pytest.mark.parametrize(
    ("said", "value"),
    [("true", True), ("TRUE", True), ("True", True),
     ("false", False), ("False", False), ("fAlSe", False), ("", None)],
)  # fmt: skip
def test_switch_is_true_false_or_unset_in_any_case(
    monkeypatch: pytest.MonkeyPatch, variable: str, said: str, value: bool | None
) -> None:
    """Two words, however they are capitalised; empty is unset."""
    field = {"SAFE_MODE": "safe_mode", "ENABLE_NVML": "enable_nvml"}[variable]
    monkeypatch.setenv(variable, said)
    assert getattr(load_settings(), field) is value


@pytest.mark.parametrize("said", ["1", "0", "yes", "no", "on", "off", "t", " true", "truefalse"])
def test_switch_of_another_spelling_is_refused(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    """Nothing is guessed where a guess could give out GPUs."""
    monkeypatch.setenv("SAFE_MODE", said)
    with pytest.raises(SettingsError, match=r"^SAFE_MODE=.* must be true or false, or unset$"):
        load_settings()


def test_override_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line goes before the environment."""
    monkeypatch.setenv("GPU_ORCHESTRATOR_PORT", "8015")
    assert load_settings(port=8016).port == 8016
    assert load_settings().port == 8015


def test_override_of_a_wrong_form_is_an_error() -> None:
    """The command line is held to the same form."""
    with pytest.raises(SettingsError, match="65535"):
        load_settings(port=65536)


@pytest.mark.parametrize(
    ("url", "said", "value"),
    [
        (None, None, False),
        (None, "true", True),
        ("redis://h", None, True),
        ("redis://h", "false", False),
    ],
)
def test_new_pool_is_safe_unless_it_is_this_machine_s_own(
    monkeypatch: pytest.MonkeyPatch, url: str | None, said: str | None, value: bool
) -> None:
    """SAFE_MODE decides; unset, a named server is safe and the embedded store is not."""
    for name, given in (("REDIS_URL", url), ("SAFE_MODE", said)):
        if given is not None:
            monkeypatch.setenv(name, given)
    assert load_settings().new_pool_safe_mode is value


@pytest.mark.parametrize(
    ("bind", "loopback"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True),
     ("0.0.0.0", False), ("::", False), ("10.0.0.1", False), ("localhost.example", False)],
)  # fmt: skip
def test_loopback_is_only_what_no_other_machine_reaches(bind: str, loopback: bool) -> None:
    """A name that might be anything counts as reachable."""
    assert load_settings(bind=bind).loopback is loopback


def test_deadline_of_a_host_is_three_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """15 s by default, and with the reports it shrinks."""
    assert load_settings().deadline_ms == 15000
    monkeypatch.setenv("GPU_BROKER_REPORT_S", "0.3")
    assert load_settings().deadline_ms == 900


def test_settings_in_effect_say_where_each_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """For doctor: the value as it is, from the environment or by default; empty is by default."""
    monkeypatch.setenv("GPU_ORCHESTRATOR_PORT", "8015")
    monkeypatch.setenv("ENABLE_NVML", "")
    found = {s.name: (s.value, s.source) for s in broker_settings_in_effect()}
    assert found["GPU_ORCHESTRATOR_PORT"] == ("8015", "environment")
    assert found["ENABLE_NVML"] == ("unset", "default")
    assert found["SAFE_MODE"] == ("unset", "default")
    assert source_of("ENABLE_NVML") == "default"


# The SDK's


@pytest.mark.parametrize(("variable", "field", "default", "given", "value"), SDK)
def test_sdk_setting_is_its_default_until_its_variable_says_otherwise(
    variable: str, field: str, default: object, given: str, value: object
) -> None:
    """Unset and empty are the default, in the SDK as in the broker."""
    if field != "state_dir":
        assert getattr(read_settings({}), field) == default
    assert read_settings({variable: ""}) == read_settings({})
    assert getattr(read_settings({variable: given}), field) == value


@pytest.mark.parametrize(("variable", "field", "default", "given", "value"), CLIENT)
def test_client_setting_is_its_default_until_its_variable_says_otherwise(
    variable: str, field: str, default: object, given: str, value: object
) -> None:
    """And an orchestrator is configured only when its URL is set."""
    assert getattr(read_orchestrator_settings({}), field) == default
    assert read_orchestrator_settings({variable: ""}) == read_orchestrator_settings({})
    found = read_orchestrator_settings({variable: given})
    assert getattr(found, field) == value
    assert found.configured == (variable == "GPU_ORCHESTRATOR_URL")


def test_policy_ttl_of_a_wrong_form_counts_as_unset(caplog: pytest.LogCaptureFixture) -> None:
    """The client never raises: it says so in the log."""
    found = read_orchestrator_settings({"GPU_ORCHESTRATOR_POLICY_TTL": "soon"})
    assert found.policy_ttl_s == 30.0
    assert "GPU_ORCHESTRATOR_POLICY_TTL='soon'" in caplog.text


@pytest.mark.parametrize(
    ("environ", "folder"),
    [({}, "~/.local/state/gpu-broker"),
     ({"XDG_STATE_HOME": ""}, "~/.local/state/gpu-broker"),
     ({"XDG_STATE_HOME": "/state"}, "/state/gpu-broker"),
     ({"XDG_STATE_HOME": "/state", "GPU_BROKER_STATE_DIR": ""}, "/state/gpu-broker"),
     ({"XDG_STATE_HOME": "/state", "GPU_BROKER_STATE_DIR": "/own"}, "/own")],
)  # fmt: skip
def test_state_folder_is_its_own_or_in_the_users_state_home(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], folder: str
) -> None:
    """GPU_BROKER_STATE_DIR, else XDG_STATE_HOME/gpu-broker, else the home's."""
    monkeypatch.setenv("HOME", "/srv/somebody")
    expected = Path(folder.replace("~", "/srv/somebody"))
    assert read_settings(environ).state_dir == expected


def test_store_url_is_the_named_server_or_the_embedded_socket() -> None:
    """One rule for SDK, command line and broker."""
    own, named = (read_settings({"GPU_BROKER_STATE_DIR": "/own", "REDIS_URL": url})
                  for url in ("", "redis://gpu-store"))  # fmt: skip
    assert (own.embedded, own.store_url) == (True, "unix:///own/redis.sock")
    assert (named.embedded, named.store_url) == (False, "redis://gpu-store")


@pytest.mark.parametrize(
    "folder", ["/tmp/a b", "/tmp/ü", "/tmp/a:b@c", "/tmp/a#b", "/tmp/a?b", "/tmp/a%20b", "state"]
)
def test_store_url_reaches_the_embedded_socket_whatever_its_folder_is_called(folder: str) -> None:
    """Clients go to the socket that `serve` opens, also where a URL would need quoting."""
    settings = read_settings({"GPU_BROKER_STATE_DIR": folder})
    with Store(settings.store_url).connect() as client:
        path = client.connection_pool.connection_kwargs["path"]
    assert path == str(EmbeddedStore(settings.state_dir).socket)


def test_environ_given_is_the_only_one_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one it is the process's own."""
    monkeypatch.setenv("GPU_BROKER_POOL", "mine")
    assert read_settings().pool == "mine"
    assert read_settings({}).pool == "default"
    assert source_of("GPU_BROKER_POOL") == "environment"
    assert source_of("GPU_BROKER_POOL", {}) == "default"


# What may be shown


@pytest.mark.parametrize(("url", "shown"), MASKED)
def test_masked_url_is_the_url_without_its_password(url: str, shown: str) -> None:
    """All else stays readable."""
    assert read_settings({"REDIS_URL": url}).masked_url == shown


@pytest.mark.parametrize("url", LEAKING)
def test_masked_url_never_shows_a_password(url: str) -> None:
    """Wherever redis-py would find it, and where a slip of the pen has put it."""
    assert SECRET not in read_settings({"REDIS_URL": url}).masked_url


@pytest.mark.parametrize("url", [url for url, _ in MASKED] + LEAKING)
def test_settings_in_effect_show_no_password(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Neither as a setting nor in the sentence that refuses it."""
    monkeypatch.setenv("REDIS_URL", url)
    told = ""
    try:
        load_settings()
    except SettingsError as error:
        told = str(error)
    assert SECRET not in f"{sdk_settings_in_effect()} {told}"


@pytest.mark.parametrize("url", [f"redis://user:{SECRET}/x@h:1", f"redis://u:{SECRET}?x@h:1"])
def test_password_that_needs_quoting_is_refused_without_being_told(
    monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    """A password with a slash reads as a port: the complaint must not quote it."""
    monkeypatch.setenv("REDIS_URL", url)
    with pytest.raises(SettingsError) as told:
        load_settings()
    assert SECRET not in str(told.value)


def test_address_of_a_service_is_no_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kubernetes gives every pod variables of the services beside it, as Docker did with links."""
    for name, value in {
        "PORT": "tcp://10.96.0.1:8014", "PORT_8014_TCP": "tcp://10.96.0.1:8014",
        "PORT_8014_TCP_ADDR": "10.96.0.1", "SERVICE_HOST": "10.96.0.1", "SERVICE_PORT": "8014",
    }.items():  # fmt: skip
        monkeypatch.setenv(f"GPU_ORCHESTRATOR_{name}", value)
        monkeypatch.setenv(f"GPU_BROKER_{name}", value)
    assert load_settings().port == 8014
    monkeypatch.setenv("GPU_ORCHESTRATOR_PORT", "tcp://[fd00::1]:9000")
    assert load_settings().port == 8014, "the service's port is not the pod's"
    monkeypatch.setenv("GPU_ORCHESTRATOR_PORT", "http://10.96.0.1")
    with pytest.raises(SettingsError, match="GPU_ORCHESTRATOR_PORT"):
        load_settings()
