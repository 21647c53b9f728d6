"""F32: a process with warm clients forks. No answer may reach another process than the one that asked."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from pathlib import Path

from meshlib import Mesh
from process.replicas import World, until

CALLS = 300
FORKS = """
import asyncio, json, os, sys
from meshlib import Mesh

CALLS = int(sys.argv[1])
mesh = Mesh("caller")
client, sync_client = mesh.client("backend"), mesh.sync_client("backend")

async def asking(who):
    wrong = 0
    for start in range(0, CALLS, 10):
        words = [f"{who}-a{n}" for n in range(start, start + 10)]
        replies = await asyncio.gather(*(client.get(f"/echo/{word}") for word in words))
        wrong += sum(reply.text != word for reply, word in zip(replies, words))
    return wrong

def asked(who):
    return sum(sync_client.get(f"/echo/{who}-s{n}").text != f"{who}-s{n}" for n in range(CALLS))

warm = asyncio.new_event_loop()
print("warm", warm.run_until_complete(asking("parent")), asked("parent"), flush=True)
children = []
for child in range(3):
    pid = os.fork()
    if not pid:
        wrong = asked(f"child{child}") + asyncio.run(asking(f"child{child}"))
        print(json.dumps({"child": child, "wrong": wrong}), flush=True)
        mesh.close()
        os._exit(0 if wrong == 0 else 3)
    children.append(pid)
wrong = asked("parent-again") + warm.run_until_complete(asking("parent-again"))
codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
print(json.dumps({"parent": wrong, "codes": codes}), flush=True)
warm.run_until_complete(mesh.aclose())
warm.close()
"""

FLASK = """
from flask import Flask, jsonify
from meshlib import Mesh
import os

app, mesh = Flask(__name__), Mesh()
backend = mesh.sync_client("backend")
for n in range(20):  # the master's own connections, warm before it forks
    assert backend.get(f"/echo/master-{n}").text == f"master-{n}"

@app.get("/ask/<word>")
def ask(word):
    return jsonify(word=backend.get(f"/echo/{word}").text, pid=os.getpid())

application = mesh.wsgi(app)
"""


def test_children_of_a_warm_process_get_their_own_answers(tmp_path: Path) -> None:
    """Three children and the parent, 300 calls with each client, at the same time: 0 wrong answers, nothing on stderr."""
    with World(tmp_path, {"backend": {}}) as world:
        world.serve("backend", 2)
        forking = world.run(FORKS, "forking", str(CALLS), MESHLIB_LOG="ERROR")
        assert forking.wait(60) == 0, forking.log()
        lines = [json.loads(line) for line in forking.log().splitlines() if line.startswith("{")]
        print(f"forks: {lines}")
        assert sorted(line["child"] for line in lines if "child" in line) == [0, 1, 2]
        assert [line["wrong"] for line in lines if "child" in line] == [0, 0, 0]
        assert lines[-1] == {"parent": 0, "codes": [0, 0, 0]}
        assert "warm 0 0" in forking.log()
        assert "Traceback" not in forking.log()


def test_gunicorn_preload_with_four_workers(tmp_path: Path) -> None:
    """gunicorn --preload -w 4, a Flask application with warm clients: 300 calls, 0 wrong answers, from several workers."""
    with World(tmp_path, {"backend": {}, "front": {}}) as world:
        world.serve("backend", 2)
        (tmp_path / "front.py").write_text(FLASK)
        command = [
            sys.executable, "-m", "gunicorn", "--preload", "-w", "4", "-b", "127.0.0.1:0", "--graceful-timeout", "2",
            "-k", "meshlib.transport.gunicorn.PeerWorker", "--chdir", str(tmp_path), "front:application",
        ]  # fmt: skip
        front = world.execute(command, "gunicorn", MESHLIB_SERVICE="front")
        address = until(lambda: re.search(r"Listening at: http://(\S+)", front.log()), "gunicorn listens")[1]
        until(lambda: front.log().count("Booting worker") == 4, "four workers")
        world.endpoints("front", [address])

        async def scenario() -> tuple[int, set[int]]:
            wrong, pids = 0, set()
            async with Mesh("caller", world.config) as mesh:
                client = mesh.client("front")
                for start in range(0, CALLS, 20):
                    words = [f"w{n}" for n in range(start, start + 20)]
                    replies = await asyncio.gather(*(client.get(f"/ask/{word}") for word in words))
                    wrong += sum(reply.json()["word"] != word for reply, word in zip(replies, words, strict=True))
                    pids |= {reply.json()["pid"] for reply in replies}
            return wrong, pids

        try:
            wrong, pids = asyncio.run(scenario())
        finally:
            front.popen.terminate()
            code = front.wait()
        print(f"gunicorn: {CALLS} calls by {len(pids)} workers, {wrong} wrong, exit {code}")
        assert wrong == 0
        assert len(pids) > 1
        assert code == 0
        assert "Traceback" not in front.log(), front.log()
