#!/usr/bin/env bash
# Creates a task and changes it, with nothing but curl.
set -euo pipefail
api=${TASKFLOW_API:-http://127.0.0.1:8080}

login=$(curl -fsS "$api/v1/sessions" -H 'content-type: application/json' \
    -d "{\"email\": \"${TASKFLOW_EMAIL:-user@taskflow.com}\", \"password\": \"${TASKFLOW_PASSWORD:-user123}\"}")
field() { sed "s/.*\"$1\":\"\([^\"]*\)\".*/\1/"; }
token=$(field token <<<"$login")
me=$(field userid <<<"$login")

# --retry repeats what a 503, a 429 or a broken connection ended, and waits as long as retry-after says. The id stays the
# same, so nothing happens twice.
send() { # TYPE SUBJECT DATA
    curl -fsS --retry 10 --retry-all-errors "$api/v1/commands" -H "authorization: Bearer $token" \
        -H 'content-type: application/json' -H 'prefer: wait=10' -d '{
            "specversion": "1.0", "id": "'"$(cat /proc/sys/kernel/random/uuid)"'", "source": "/examples/curl",
            "type": "'"$1"'", "subject": "'"$2"'", "actorid": "'"$me"'", "data": '"$3"'
        }'
    echo
}

task=$(cat /proc/sys/kernel/random/uuid)
send task.create "$task" '{"title": "From curl", "priority": "high"}'
send task.change_status "$task" '{"status": "in_progress"}'
curl -fsS "$api/v1/tasks/$task" -H "authorization: Bearer $token"
echo
