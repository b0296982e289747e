"""Creates a task and changes it over AMQP: the same service without HTTP."""

import json
import os
import time
import uuid

import pika

URL = os.environ["TASKFLOW_AMQP__URL"]
ACTOR = os.environ.get("TASKFLOW_ACTOR", "01930000-0000-7000-8000-000000000002")  # the sample user


def command(kind, subject, data):
    return {
        "specversion": "1.0", "id": str(uuid.uuid4()), "source": "/examples/pika",
        "type": kind, "subject": subject, "actorid": ACTOR, "data": data,
    }


def send(commands):
    """Sends commands, in this order; each is safe when its confirm has come.

    If the connection breaks, all are sent again. Their ids stay the same: each takes effect once.
    """
    while True:
        try:
            with pika.BlockingConnection(pika.URLParameters(URL)) as connection:
                channel = connection.channel()
                channel.confirm_delivery()
                for one in commands:
                    channel.basic_publish(
                        exchange="taskflow.commands",
                        routing_key=one["subject"][-2:].lower(),  # the slot: it keeps a subject's commands in order
                        body=json.dumps(one),
                        properties=pika.BasicProperties(
                            content_type="application/cloudevents+json",
                            delivery_mode=2,
                            message_id=one["id"],
                        ),
                        mandatory=True,
                    )
            return
        except (pika.exceptions.AMQPConnectionError, pika.exceptions.NackError) as error:
            # Away, or its queue is full.
            print(f"{error!r}; once more")
            time.sleep(1)


task = str(uuid.uuid4())
create = command("task.create", task, {"title": "From pika", "priority": "high"})
change = command("task.change_status", task, {"status": "in_progress"})
send([create, change])
# What became of them: GET /v1/commands/ID, or `taskflow receipt ID`.
print(json.dumps({"task": task, "commands": [create["id"], change["id"]]}))
