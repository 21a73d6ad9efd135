"""A small agent that speaks pi's RPC, for tests that need many or need to see inside: standard library only.

It keeps its conversation in the session file, a line for each message, and answers at once:

    secrets         every word of the conversation that begins with "secret-"
    wait            nothing until it is aborted (then stopReason "aborted")
    die             it exits in the middle of the turn
    anything else   "heard: " and the message
"""

import argparse
import json
import os
import sys
import threading


class Agent:
    def __init__(self, path: str) -> None:
        self.path = path
        self.messages: list[dict[str, str]] = []
        if os.path.exists(path):
            with open(path) as file:
                self.messages = [json.loads(line) for line in file]
        self.streaming = False
        self.aborted = threading.Event()
        self.lock = threading.Lock()

    def say(self, **message: object) -> None:
        line = json.dumps(message, ensure_ascii=False) + "\n"
        with self.lock:
            os.write(1, line.encode())

    def keep(self, role: str, text: str) -> None:
        self.messages.append({"role": role, "text": text})
        with open(self.path, "a") as file:
            file.write(json.dumps(self.messages[-1]) + "\n")

    def turn(self, message: str) -> None:
        self.say(type="agent_start")
        if message == "die":
            os._exit(9)
        stop, answer = "stop", f"heard: {message}"
        self.keep("user", message)
        if message == "wait":
            self.say(type="message_update", assistantMessageEvent={"type": "text_delta", "delta": "waiting"})
            self.aborted.wait()
            stop, answer = "aborted", ""
        elif message == "secrets":
            words = (word for kept in self.messages for word in kept["text"].split())
            answer = " ".join(sorted({word for word in words if word.startswith("secret-")}))
        for at in range(0, len(answer), 7):
            self.say(type="message_update", assistantMessageEvent={"type": "text_delta", "delta": answer[at : at + 7]})
        self.keep("assistant", answer)
        usage = {"input": len(message), "output": len(answer)}
        self.say(type="message_end", message={"role": "assistant", "stopReason": stop, "usage": usage})
        self.say(type="agent_end", messages=[])
        self.streaming = False

    def command(self, command: dict[str, str]) -> None:
        reply: dict[str, object] = {"id": command.get("id"), "type": "response", "command": command["type"]}
        match command["type"]:
            case "prompt" if self.streaming:
                self.say(**reply, success=False, error="already at work")
            case "prompt":
                self.streaming = True
                self.aborted.clear()
                self.say(**reply, success=True)
                threading.Thread(target=self.turn, args=(command["message"],), daemon=True).start()
            case "abort":
                self.aborted.set()
                self.say(**reply, success=True)
            case "get_state":
                state = {"isStreaming": self.streaming, "isCompacting": False, "sessionFile": self.path}
                self.say(**reply, success=True, data=state)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mode")
    parser.add_argument("--session", required=True)
    parser.add_argument("--model")
    parser.add_argument("--thinking")
    agent = Agent(parser.parse_args().session)
    print("small agent at work", file=sys.stderr, flush=True)
    for line in sys.stdin:
        if line.strip():
            agent.command(json.loads(line))


if __name__ == "__main__":
    main()
