"""Creates a task and changes it over HTTP."""

import os
import time
import uuid

import httpx

API = os.environ.get("TASKFLOW_API", "http://127.0.0.1:8080")
EMAIL = os.environ.get("TASKFLOW_EMAIL", "user@taskflow.com")
PASSWORD = os.environ.get("TASKFLOW_PASSWORD", "user123")


def command(kind, subject, actor, data):
    return {
        "specversion": "1.0", "id": str(uuid.uuid4()), "source": "/examples/httpx",
        "type": kind, "subject": subject, "actorid": actor, "data": data,
    }


def send(client, command):
    """Sends a command until it is accepted; returns its receipt, or that it was accepted and has not ended yet.

    The id stays the same: however often it is sent, it takes effect once.
    """
    while True:
        try:
            answer = client.post("/v1/commands", json=command, headers={"prefer": "wait=10"})
        except httpx.TransportError:
            time.sleep(0.5)
            continue
        if answer.status_code in (429, 503):
            time.sleep(float(answer.headers.get("retry-after", "1")))
            continue
        if answer.is_error:
            # The body names every fault by its JSON pointer.
            raise SystemExit(answer.text)
        return answer.json()


with httpx.Client(base_url=API, timeout=30) as client:
    login = client.post("/v1/sessions", json={"email": EMAIL, "password": PASSWORD})
    if login.is_error:
        raise SystemExit(login.text)
    me = login.json()["userid"]
    client.headers["authorization"] = "Bearer " + login.json()["token"]

    task = str(uuid.uuid4())
    print(send(client, command("task.create", task, me, {"title": "From httpx", "priority": "high"})))
    print(send(client, command("task.change_status", task, me, {"status": "in_progress"})))
    print(client.get(f"/v1/tasks/{task}").json())
