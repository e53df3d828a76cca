"""Run `macmoe ARGUMENTS` with a scripted model: `python scripted_chat.py SCENARIO ARGUMENTS`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import macmoe
from macmoe.__main__ import main
from macmoe.chat.messages import Message, ToolCall
from macmoe.tools import load_tools
from tests.scripted import ScriptedModel

TOOL_FILE = Path(__file__).with_name("example_tools.py")
QUESTION = Message("user", "go")
LONG = "one two three four five six seven eight nine ten\n\n" * 20
EVIL = "title \x1b]0;owned\x07 \x9b2J \rover\x7f \u202egnp.exe &#13;&#x202e; [link](http://x.test/\x1b)"


def tools(model, name="add", **arguments):
    """Let the model call a tool, and say what came back."""
    declared = [tool.declaration for tool in load_tools(TOOL_FILE)]
    call = ToolCall(name, arguments, id="call_0")
    calling = Message("assistant", "", tool_calls=(call,))
    model.learn([QUESTION], calling, tools=declared)
    results = {
        "3": "It is 3.",
        "error: the user does not allow this call": "Then I do not know.",
        'error: a must be an integer, not "1"': "My mistake.",
    }
    for result, answer in results.items():
        message = Message("tool", result, tool_call_id="call_0", name=name)
        model.learn([QUESTION, calling, message], Message("assistant", answer), tools=declared)


def answer(model, text):
    """Let the model write a text."""
    model.learn([QUESTION], Message("assistant", text))


def slow(model):
    """Let the model write a long text, one token after the other."""
    answer(model, LONG)
    next_token = model.next_token

    def later(tokens):
        time.sleep(0.02)
        return next_token(tokens)

    model.next_token = later


def stuck(model):
    """Let the model take its time for the prompt."""

    def hidden(*_):
        print("reading", file=sys.stderr, flush=True)
        for _ in range(600):
            time.sleep(0.1)

    model.hidden = hidden


FORMULA = "So \\(a\\,b\\):\n\n- \\[\n  x_1 = \\{a_1, b_1\\} \\\\\n  \\]\n\n**Done.**"

SCENARIOS = {
    "formula": lambda model: answer(model, FORMULA),
    "add": lambda model: tools(model, a=1, b=2),
    "wrong arguments": lambda model: tools(model, a="1", b=2),
    "sleep": lambda model: tools(model, "sleep"),
    "evil": lambda model: answer(model, EVIL),
    "slow": slow,
    "stuck": stuck,
}


def scripted(scenario, family="deepseek_v3"):
    """Return a session with a model that plays a scenario."""
    model = ScriptedModel(family)
    SCENARIOS[scenario](model)
    return model.session()


if __name__ == "__main__":
    chosen = sys.argv.pop(1)
    macmoe.load = lambda *_, **__: scripted(chosen)
    main()
