"""LangChain's own suite for chat models (langchain-tests), by langchain-openai, against the running server.

What is not expected to pass is marked one by one, with the reason."""

import pytest

from conftest import TINY, model_path

pytest.importorskip("langchain_tests")
langchain_openai = pytest.importorskip("langchain_openai")

from langchain_tests.integration_tests import ChatModelIntegrationTests  # noqa: E402

URL = {}


@pytest.fixture(scope="module", autouse=True)
def endpoint(server):
    if model_path() == TINY:
        pytest.skip("the suite asks for an answer with sense: SmolLM2 (SWITCHYARD_MODEL)")
    URL["base_url"] = server.url + "/v1"
    URL["model"] = server.model


class TestSwitchyard(ChatModelIntegrationTests):
    @property
    def chat_model_class(self):
        return langchain_openai.ChatOpenAI

    @property
    def chat_model_params(self):
        return {"base_url": URL["base_url"], "model": "auto", "api_key": "none", "temperature": 0,
                "max_tokens": 100, "stream_usage": True}

    @property
    def supports_json_mode(self):
        return True

    @property
    def supports_model_override(self):
        return True

    @property
    def model_override_value(self):
        return URL["model"]

    @pytest.mark.xfail(reason="wants a call without tool_choice: SmolLM2-135M was not trained to call "
                              "functions and answers in words; test_tools.py does the same by tool_choice")
    def test_agent_loop(self, model):
        super().test_agent_loop(model)

    @pytest.mark.xfail(reason="JSON mode promises JSON; which keys it has is up to the model, and "
                              "SmolLM2-135M does not keep to those that the question asks for")
    def test_json_mode(self, model):
        super().test_json_mode(model)

    # Skipped by the suite itself, as the properties above leave them at no: images, PDF and audio (the
    # experts read text), Anthropic's content blocks (another API's shape), and the recording of time.
