"""Examples of each request and answer in the OpenAPI document; a test holds them to the truth."""

from __future__ import annotations

from typing import Any, Final

from agent_sdk.policy import FIELDS
from agent_sdk.teams.policy import FIELDS as TEAM_FIELDS
from broker.serializers.lease_json import POLICY_NAMES

TOKEN: Final = "3f2a90c15d0e4c3b9a536f0b7c1d2e4f"  # noqa: S105 - an example

LEASE: Final[dict[str, Any]] = {
    "agent": "analyst", "team": "nlp", "gpu": 0, "token": TOKEN, "timestamp": 1795607407.688,
    "gpus": [
        {"uuid": "GPU-5c2a90d4-7a1e-4a52-9f0b-2f4f2a1c8e11", "index": 0, "host": "gpu-host-3",
         "name": "NVIDIA H100 80GB HBM3", "memory_mb": 8192, "memory_total_mb": 81559,
         "memory_used_mb": 8301, "runtime_id": "0"}],
    "host": "gpu-host-3", "memory_mb": 8192, "fence": 1795607407688967,
    "expires_at": 1795611007.688, "expires_in_s": 3600.0, "ttl_s": 3600.0, "state": "active",
    "reason": None,
}  # fmt: skip

POLICY: Final[dict[str, Any]] = {
    POLICY_NAMES.get(name, name): field.default for name, field in FIELDS.items()
} | {
    "max_memory_per_agent_mb": 16384, "idle_action": "notify", "overuse_action": "enforce",
    "xid_actions": "31=suspect", "memory_limit": "where_possible", "version": 7,
}  # fmt: skip

KNOWN: Final[dict[str, Any]] = LEASE | {
    "priority": 0, "findings": ["idle"], "notices": ["idle"], "enforced": False, "note": None,
    "preempt_at": None, "preempt_for": None,
}  # fmt: skip

EXPLAINED: Final[dict[str, Any]] = {
    "token": TOKEN, "agent": "analyst", "state": "waiting", "now_ms": 1795607407688,
    "code": "next", "summary": "it is next: it is served as soon as enough is free",
    "devices": [{"uuid": "GPU-5c2a90d4", "host": "gpu-host-3", "index": 0, "name": "NVIDIA H100",
                 "free_mb": 4096, "reason": "full", "says": "its leases leave too little"}],
    "ahead": [], "ahead_count": 0, "first_end": None, "estimate_s": 26.5,
    "basis": "if bob does not renew lease d2fb7126", "fits_now": [],
    "reservation": None, "host": "", "near_host": "",
}  # fmt: skip

TEAMS: Final[dict[str, Any]] = {
    "nlp": {name: of.default for name, of in TEAM_FIELDS.items()}
    | {"weight": 2, "nominal_mb": 98304, "max_priority": 5,
       "models": {"NVIDIA H100": {"nominal_mb": 327680, "borrow_mb": 0}}}
}  # fmt: skip

USED: Final[dict[str, Any]] = {
    "day": None, "team": "nlp", "agent": "analyst", "host": None, "model": None, "leases": 41,
    "running": 1, "held_hours": 58.2, "gpu_hours": 44.6, "busy_gpu_hours": 29.9,
    "idle_gpu_hours": 12.2, "unknown_gpu_hours": 2.5, "busy_share": 0.710214,
    "mb_hours": 3641344.0, "above_peak_mb_hours": 1204224.0, "waits": 6, "mean_wait_s": 31.4,
    "energy_kwh": 21.3, "cost": 142.72, "gpu_hours_by_hour": [], "gpu_hours_by_day": [],
}  # fmt: skip

OVER: Final[dict[str, Any]] = {
    "id": "1795611023114-0", "token": TOKEN, "agent": "analyst", "team": "nlp",
    "host": "gpu-host-3", "model": "NVIDIA H100 80GB HBM3",
    "gpus": [{"uuid": "GPU-5c2a90d4-7a1e-4a52-9f0b-2f4f2a1c8e11", "memory_mb": 8192}],
    "memory_mb": 8192, "outcome": "released", "granted_at": 1795607407.688,
    "ended_at": 1795611007.688, "held_s": 3600.0, "waited_s": None, "gpu_hours": 0.101092,
    "observed_gpu_s": 3570.0, "busy_gpu_s": 2535.5, "peak_mb": 5902, "energy_kwh": 0.0481,
}  # fmt: skip

HOOK: Final[dict[str, Any]] = {
    "name": "ops", "url": "https://ops.example/gpu", "on": ["expired", "quarantined"],
    "state": "active", "disabled": None, "delivered": 12, "delivered_at": 1795607407.9,
    "failed": 0, "failing_since": None, "error": None, "error_at": None, "backlog": 0,
    "missed": 0, "by": "ann", "created_at": 1795600000.1,
}  # fmt: skip

REQUESTS: Final[dict[tuple[str, str], dict[str, Any]]] = {
    ("post", "/lease"): {"agent": "analyst", "min_memory_mb": 8192, "ttl_s": 60},
    ("post", "/explain"): {"agent": "analyst", "min_memory_mb": 40960},
    ("post", "/renew"): {"token": TOKEN, "ttl_s": 60},
    ("post", "/release"): {"token": TOKEN},
    ("post", "/policy"): {"max_memory_per_agent_mb": 16384},
    ("put", "/policy/teams"): {
        "teams": {
            "nlp": {
                "weight": 2,
                "nominal_mb": 98304,
                "max_priority": 5,
                "models": {"NVIDIA H100": {"nominal_mb": 327680, "borrow_mb": 0}},
            }
        }
    },
    ("post", "/drain"): {"host": "gpu-host-3", "reason": "new driver"},
    ("post", "/undrain"): {"host": "gpu-host-3"},
    ("post", "/forget"): {"host": "gpu-host-3", "reason": "sent back"},
    ("post", "/revoke"): {"agent": "analyst", "reason": "runs wild"},
    ("post", "/hooks"): {"url": HOOK["url"], "on": HOOK["on"], "name": "ops"},
}
"""Body by method and path."""

ANSWERS: Final[dict[tuple[str, str], Any]] = {
    ("get", "/health"): {"status": "ok", "safe_mode": False, "redis": "up", "pool": "default",
                         "pool_id": "5d1f3cf2a9b0", "version": "0.1.0", "replica": "b451ec0e"},
    ("get", "/ready"): {"ready": True},
    ("get", "/gpu/info"): {
        "available": True, "nvml_enriched": False, "nvml_supported": False,
        "gpus": [{"index": 0, "name": "NVIDIA H100 80GB HBM3", "uuid": "GPU-5c2a90d4",
                  "host": "gpu-host-3", "model": "NVIDIA H100 80GB HBM3", "state": "ok",
                  "reason": "", "drained": False, "simulated": False, "sampled_at": 1795607407.2,
                  "memory_total_mb": 81559.0, "memory_used_mb": 8301.0,
                  "utilization_gpu_pct": 83.0, "memory_utilization_pct": 41.0,
                  "temperature_c": 54.0, "power_draw_w": 412.0, "power_limit_w": 700.0,
                  "clock_sm_mhz": 1980.0, "clock_memory_mhz": 2619.0, "memory_withheld_mb": 0,
                  "memory_foreign_mb": 193, "memory_system_mb": 524, "one_lease": None,
                  "memory_unified": False, "parent": None, "rows_pending": False,
                  "rows_failed": False, "memory_reserved_mb": 8192,
                  "memory_free_mb": 73258, "memory_left_mb": 73258, "leases": 1,
                  "reserved_for": None, "reserved_since": None, "reserved_until": None,
                  "process_visibility": "host", "processes_unseen": None, "processes": [
                      {"pid": 4711, "name": "python3", "user": "ann", "memory_mb": 8108,
                       "busy_pct": 83.0, "token": TOKEN, "finding": None,
                       "graphics_only": False, "since": 1795607411.2},
                      {"pid": 991, "name": "jupyter", "user": "bob", "memory_mb": 193,
                       "busy_pct": 0.0, "token": None, "finding": "squatter",
                       "graphics_only": False, "since": 1795604000.9}],
                  "findings": [{"kind": "squatter", "subject": "991"}], "quarantine": "",
                  "xid": None, "xid_at": None, "recovery_action": 0, "ecc_uncorrected": 0,
                  "mps": False}]},
    ("get", "/policy"): POLICY,
    ("post", "/policy"): POLICY,
    ("get", "/policy/teams"): {"version": 7, "teams": TEAMS},
    ("put", "/policy/teams"): {"version": 8, "teams": TEAMS},
    ("get", "/teams"): {"teams": [TEAMS["nlp"] | {
        "name": "nlp", "listed": True, "used_mb": 106496, "leases": 9, "waiters": 2,
        "reserved_mb": 0, "borrowed_mb": 8192, "lent_mb": 0, "use_mb_s": 81603584.0,
        "share": 43996672.0, "used_share": 0.7, "wanted_share": 0.667,
        "models": {"NVIDIA H100": {"nominal_mb": 327680, "borrow_mb": 0, "used_mb": 81920,
                                   "reserved_mb": 0, "borrowed_mb": 0}}}]},
    ("get", "/usage"): {
        "now": 1795611100.2, "since": 1793019100.2, "until": 1795611100.2,
        "first_day": "2026-10-26", "last_day": "2026-11-25", "by": ["team", "agent"],
        "total": USED | {"team": None, "agent": None}, "prices": {"*": 3.2}, "unpriced": [],
        "rows": [USED]},
    ("get", "/history"): {"leases": [OVER], "next": "older/1795611023114-0",
                          "last": "1795611023114-0"},
    ("get", "/allocations"): {"allocations": {TOKEN: KNOWN}},
    ("post", "/lease"): LEASE | {"granted": True, "code": None, "env": {
        "CUDA_VISIBLE_DEVICES": "GPU-5c2a90d4-7a1e-4a52-9f0b-2f4f2a1c8e11",
        "GPU_LEASE_TOKEN": TOKEN}},
    ("get", "/lease/{token}"): KNOWN,
    ("get", "/lease/{token}/explain"): EXPLAINED,
    ("post", "/explain"): EXPLAINED | {"token": None, "state": "asked"},
    ("get", "/queue"): {"waiting": 1, "queue": [
        {"token": TOKEN, "agent": "analyst", "team": "nlp", "state": "waiting", "granted": False,
         "place": 0, "capped": False, "capped_by": None, "memory_mb": 8192, "devices": 1,
         "exclusive": False, "priority": 0, "host": None, "model": None,
         "enqueued_at": 1795607395.3, "waiting_s": 12.4, "gives_up_at": 1795607425.3,
         "reserved": [], "reservation": None}]},
    ("get", "/events"): (
        "id: 1795607407688-0\nevent: granted\ndata: "
        '{"id": "1795607407688-0", "event": "granted", "at": 1795607407.688, "agent": "analyst", '
        '"token": "3f2a90c1…1795607407688967", "fence": 1795607407688967, "devices": [{"uuid": '
        '"GPU-5c2a90d4", "index": 0, "host": "gpu-host-3", "memory_mb": 8192}]}\n\n'),
    ("get", "/live"): (
        "id: 1795607407688-0\nevent: change\ndata: "
        '{"id": "1795607407688-0", "now": 1795607407.691, "rows": {"pool": {"pool": {"leases": 1}'
        '}}, "gone": {}, "events": []}\n\n'),
    ("post", "/renew"): {"renewed": True, "token": TOKEN, "expires_at": 1795607467.688,
                         "expires_in_s": 60.0, "notices": [], "preempt_in_s": None, "wanted": None},
    ("post", "/release"): {"released": True, "token": TOKEN},
    ("get", "/metrics"): "gpu_orchestrator_active_leases 1.0\n",
    ("post", "/drain"): {"drained": 8},
    ("post", "/undrain"): {"undrained": 8},
    ("post", "/forget"): {"forgotten": 8},
    ("post", "/revoke"): {"revoked": [TOKEN]},
    ("post", "/hooks"): HOOK | {"secret": "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"},
    ("get", "/hooks"): {"hooks": [HOOK], "served": True},
    ("get", "/hooks/{name}"): HOOK,
    ("post", "/hooks/{name}/enable"): HOOK,
    ("post", "/hooks/{name}/test"): {"delivered": True, "said": "status 204", "status": 204,
                                     "answer": "", "took_s": 0.031},
    ("delete", "/hooks/{name}"): {"removed": "ops"},
    ("get", "/hosts"): {"hosts": [{"host": "gpu-host-3", "version": "0.1.0", "devices": 8,
                                   "drained": False, "alive": True, "reported_at": 1795607407.2,
                                   "report_age_s": 0.5, "trouble": None,
                                   "trouble_since": None, "warning": None}]},
}  # fmt: skip
"""Body of a 200 by method and path."""
