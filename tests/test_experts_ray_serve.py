"""From cards to Ray's settings, and from Ray's messages to plain words. No Ray is started."""

from __future__ import annotations

import pytest
from collegium.experts.card import parse_card
from collegium.experts.ray_serve import app_phase, engine_settings, failure_reason, phase_reason

BACKEND = {"kind": "engine", "model": "lab/model", "memory_gb": 8}

TRACEBACK = """The deployment failed to start 2 times in a row. Error:
Traceback (most recent call last):
  File "replica.py", line 1, in initialize
ValueError: an outer one
  File "engine.py", line 2, in start
RuntimeError: Failed to create vLLM engine config: 1 validation error for ModelConfig
  Value error, The checkpoint has model type `nosuch`, which is not known.

You can update the library with the command `pip install --upgrade`. [type=value_error, input_value=X()]
    For further information visit https://errors.pydantic.dev
"""


def test_a_failure_is_told_by_its_innermost_error_and_what_pydantic_says_below_it() -> None:
    assert failure_reason(TRACEBACK) == (
        "RuntimeError: Failed to create vLLM engine config: 1 validation error for ModelConfig: "
        "The checkpoint has model type `nosuch`, which is not known."
    )


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (
            "ray.exceptions.RayTaskError(OutOfMemoryError): torch.OutOfMemoryError: no room",
            "OutOfMemoryError",
        ),
        ("the replica died\n", "the replica died"),
        ("", ""),
        ("ValueError: " + "x" * 1000, "ValueError: xxx"),
    ],
)
def test_other_messages_give_their_error_or_first_line(message: str, said: str) -> None:
    assert failure_reason(message).startswith(said)
    assert len(failure_reason(message)) <= 400


def test_a_start_is_told_in_words() -> None:
    assert "loads the model" in phase_reason("starting", "has 1 replicas that take long to initialize.")
    assert "starts it again" in phase_reason("restarting", "")
    assert phase_reason("running", "whatever") == ""


@pytest.mark.parametrize(
    ("trigger", "phase"), [("HEALTH_CHECK_FAILED", "restarting"), ("REPLICA_STARTUP_FAILED", "failed")]
)
def test_a_replica_that_died_during_what_serve_takes_for_an_update_is_no_failed_start(trigger: str, phase: str) -> None:
    schema = pytest.importorskip("ray.serve.schema")
    overview, whole = schema.DeploymentStatusOverview, schema.ApplicationStatusOverview
    statuses, triggers = schema.DeploymentStatus, schema.DeploymentStatusTrigger
    broken = overview(statuses.DEPLOY_FAILED, triggers(trigger), {}, "")
    deployments = {"LLMServer": broken, "LLMRouter": overview(statuses.HEALTHY, triggers.UNSPECIFIED, {}, "")}
    assert app_phase(whole(schema.ApplicationStatus.DEPLOY_FAILED, "", 0.0, deployments)) == phase
    assert app_phase(whole(schema.ApplicationStatus.DEPLOY_FAILED, "no such module", 0.0, {})) == "failed"
    assert app_phase(whole(schema.ApplicationStatus.DEPLOYING, "", 0.0, deployments)) == "starting"


def test_a_cpu_card_gets_a_cpu_engine_with_its_own_key() -> None:
    card = parse_card({"name": "small", "backend": {**BACKEND, "accelerator": "cpu", "max_model_len": 512}})
    settings = engine_settings(card, "/models/small", "k3y")
    variables = settings["runtime_env"]["env_vars"]
    assert settings["accelerator_config"] == {"kind": "cpu"}
    assert settings["model_loading_config"] == {"model_id": "small", "model_source": "/models/small"}
    assert settings["engine_kwargs"]["max_model_len"] == 512
    assert (variables["VLLM_API_KEY"], variables["HF_HUB_OFFLINE"], variables["VLLM_CPU_KVCACHE_SPACE"]) == (
        "k3y",
        "1",
        "2",
    )


def test_the_same_card_on_gpus_scales_and_pins_its_revision() -> None:
    card = parse_card(
        {"name": "large", "backend": {**BACKEND, "accelerator": "H100", "tensor_parallel_size": 4, "revision": "abc",
                                      "autoscaling": {"min": 0, "max": 3, "target_ongoing_requests": 8}}}
    )  # fmt: skip
    settings = engine_settings(card, "lab/model", "k3y")
    assert settings["accelerator_type"] == "H100"
    assert settings["engine_kwargs"] == {"tensor_parallel_size": 4, "dtype": "auto", "revision": "abc"}
    scaling = settings["deployment_config"]["autoscaling_config"]
    assert scaling == {"min_replicas": 0, "max_replicas": 3, "target_ongoing_requests": 8}
    variables = settings["runtime_env"]["env_vars"]
    assert "HF_HUB_OFFLINE" not in variables and "VLLM_CPU_KVCACHE_SPACE" not in variables


def test_room_for_adapters_is_made_at_the_start_and_every_path_of_a_local_engine_is_guarded() -> None:
    adapters = {"max": 3, "max_rank": 32}
    backend = {**BACKEND, "accelerator": "cpu", "adapters": adapters}
    card = parse_card({"name": "small", "backend": backend})
    settings = engine_settings(card, "/models/small", "k3y", "/state/adapters")
    engine, variables = settings["engine_kwargs"], settings["runtime_env"]["env_vars"]
    assert (engine["enable_lora"], engine["max_loras"], engine["max_lora_rank"]) == (True, 3, 32)
    assert "q_proj" in engine["lora_target_modules"] and "lm_head" not in engine["lora_target_modules"]
    assert engine["middleware"] == ["collegium.experts.guard.Guard", "collegium.experts.lifeline.Lifeline"]
    assert variables["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "True"
    assert variables["VLLM_LORA_RESOLVER_CACHE_DIR"] == "/state/adapters"
    assert settings["log_engine_metrics"] is False
    elsewhere = engine_settings(card, "lab/model", "k3y")
    assert "middleware" not in elsewhere["engine_kwargs"]
    assert "VLLM_LORA_RESOLVER_CACHE_DIR" not in elsewhere["runtime_env"]["env_vars"]
