// Creates a task and changes it over HTTP.

import { randomUUID } from "node:crypto";

const api = process.env.TASKFLOW_API ?? "http://127.0.0.1:8080";
const email = process.env.TASKFLOW_EMAIL ?? "user@taskflow.com";
const password = process.env.TASKFLOW_PASSWORD ?? "user123";
const pause = (seconds) => new Promise((resolve) => setTimeout(resolve, seconds * 1000));

const json = { "content-type": "application/json" };
const login = await fetch(`${api}/v1/sessions`, {
  method: "POST", headers: json, body: JSON.stringify({ email, password }),
});
if (!login.ok) throw new Error(await login.text());
const { token, userid } = await login.json();
const authorization = `Bearer ${token}`;

// Sends a command until it is accepted; returns its receipt, or that it was accepted and has not ended yet. The id stays
// the same: however often it is sent, it takes effect once.
async function send(type, subject, data) {
  const id = randomUUID();
  const body = JSON.stringify({
    specversion: "1.0", id, source: "/examples/fetch", type, subject, actorid: userid, data,
  });
  for (;;) {
    let answer;
    try {
      answer = await fetch(`${api}/v1/commands`, {
        method: "POST", headers: { ...json, authorization, prefer: "wait=10" }, body,
      });
    } catch {
      await pause(0.5);
      continue;
    }
    if (answer.status === 429 || answer.status === 503) {
      await pause(Number(answer.headers.get("retry-after") ?? 1));
      continue;
    }
    // The body names every fault by its JSON pointer.
    if (!answer.ok) throw new Error(await answer.text());
    return answer.json();
  }
}

const task = randomUUID();
console.log(await send("task.create", task, { title: "From fetch", priority: "high" }));
console.log(await send("task.change_status", task, { status: "in_progress" }));
const read = await fetch(`${api}/v1/tasks/${task}`, { headers: { authorization } });
console.log(await read.json());
