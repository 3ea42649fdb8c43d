"""Documented client of the HTTP service, with a fallback to the CPU."""

from agent_sdk.orchestrator.client import DECISION_S, FALLBACK, GPUOrchestratorClient
from agent_sdk.orchestrator.http_lease import HttpLease

__all__ = ["DECISION_S", "FALLBACK", "GPUOrchestratorClient", "HttpLease"]
