"""Let a model call a function: what it is told, what it may write, and what it gets back.

The built-in models have learned arithmetic but no tools, so the call is written here. With a model that has,
`chat.send(question)` leaves its calls in `chat.pending`, and `chat.reply(results)` lets it go on.
"""

import json

import macmoe


def weather(city: str, days: int = 1) -> dict[str, object]:
    """Tell the weather.

    Args:
        city: Where.
        days: How many days ahead.
    """
    return {"city": city, "days": days, "sky": "clear"}


if __name__ == "__main__":  # so that `macmoe chat --tool examples/tools.py` takes the function alone
    session = macmoe.load("tiny:qwen3")
    chat = session.chat(tools=[weather])
    print(json.dumps(macmoe.Tool.from_function(weather).declaration, indent=2))

    call = macmoe.ToolCall("weather", {"city": "Rome", "days": 2}, id="call_0")
    question = macmoe.Message("user", "And in Rome?")
    chat.messages += [question, macmoe.Message("assistant", "", tool_calls=(call,))]
    results = [chat.run(call) for call in chat.pending]  # nothing runs before you say so
    print(*results)
    print(chat.run(macmoe.ToolCall("weather", {"town": "Rome"})))  # the model is told what does not fit
