-- Roles for Postgres. Run it as the owner of the tables (who runs `taskflow migrate up`), in the database, after each
-- migration; it may be run again. Then give the roles to login roles of your own:
--
--   CREATE ROLE api LOGIN PASSWORD '…' IN ROLE taskflow_app;        -- API and workers
--   CREATE ROLE upkeep LOGIN PASSWORD '…' IN ROLE taskflow_scheduler;
--   CREATE ROLE auditor LOGIN PASSWORD '…' IN ROLE taskflow_reader; -- taskflow audit verify, prove
--
-- What it is for: nobody but the owner can change or remove a link of the audit trail's chains or a seal; only the
-- scheduler adds seals; only it removes what retention lets go.
--
-- The job maintenance.postgres vacuums and builds indexes anew, which only the owner may, or on Postgres 17 and later
-- who has the role pg_maintain (GRANT pg_maintain TO upkeep). Without that, switch the job off.

DO $$
DECLARE
    name TEXT;
BEGIN
    FOREACH name IN ARRAY ARRAY['taskflow_reader', 'taskflow_app', 'taskflow_scheduler'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) THEN
            EXECUTE format('CREATE ROLE %I NOLOGIN', name);
        END IF;
        EXECUTE format('GRANT USAGE ON SCHEMA %I TO %I', current_schema(), name);
        -- What earlier runs have given is given anew below.
        EXECUTE format('REVOKE ALL ON ALL TABLES IN SCHEMA %I FROM %I', current_schema(), name);
        EXECUTE format('GRANT SELECT ON ALL TABLES IN SCHEMA %I TO %I', current_schema(), name);
    END LOOP;
    FOREACH name IN ARRAY ARRAY['taskflow_app', 'taskflow_scheduler'] LOOP
        EXECUTE format('GRANT INSERT, UPDATE ON ALL TABLES IN SCHEMA %I TO %I', current_schema(), name);
        EXECUTE format('GRANT USAGE ON ALL SEQUENCES IN SCHEMA %I TO %I', current_schema(), name);
    END LOOP;
END
$$;

-- pg_dump reads where sequences stand.
DO $$
BEGIN
    EXECUTE format('GRANT SELECT ON ALL SEQUENCES IN SCHEMA %I TO taskflow_scheduler', current_schema());
END
$$;

-- What the application removes: what was delivered, ended, given back or replayed.
GRANT DELETE ON outbox, system_events, session_endings, partition_leases, workers, pauses, suspects, waiting_commands,
    receipts, search_pending, task_texts, dead_letter_replays TO taskflow_app, taskflow_scheduler;
-- What retention removes.
GRANT DELETE ON batches, receipts, tasks, dead_letters, job_runs, user_activity TO taskflow_scheduler;

-- The owner's work that retention asks for: the index of the receipts looks at its ranges anew.
GRANT EXECUTE ON FUNCTION summarize_receipts(BIGINT[]) TO taskflow_scheduler;

-- How busy the server is, which upkeep gives way to, and what its report tells are in statistics of all sessions. Only a
-- superuser, or who was given this role WITH ADMIN OPTION, can give it on.
DO $$
BEGIN
    GRANT pg_monitor TO taskflow_scheduler;
EXCEPTION WHEN insufficient_privilege THEN
    RAISE WARNING 'A superuser must still do this: GRANT pg_monitor TO taskflow_scheduler';
END
$$;

-- A place in the log is noted before migrations and before a restore takes the place of live data, so that a cluster can be
-- brought back to just before. Only a superuser can give it on.
DO $$
BEGIN
    EXECUTE format('GRANT EXECUTE ON FUNCTION pg_create_restore_point(text) TO taskflow_scheduler, %I', current_user);
EXCEPTION WHEN insufficient_privilege THEN
    RAISE WARNING 'A superuser must still do this, in this database: GRANT EXECUTE ON FUNCTION pg_create_restore_point(text) TO taskflow_scheduler, %', current_user;
END
$$;

-- The evidence: added to, never rewritten.
REVOKE INSERT, UPDATE, DELETE, TRUNCATE ON audit_links, audit_seals, audit_erasures, audit_restores, _sqlx_migrations
    FROM taskflow_app, taskflow_scheduler;
GRANT INSERT ON audit_links TO taskflow_app, taskflow_scheduler;
GRANT INSERT ON audit_seals TO taskflow_scheduler;
GRANT UPDATE (seal) ON audit_restores TO taskflow_scheduler;
-- Who erases, or says that Postgres was restored, does so as the scheduler's role.
GRANT INSERT ON audit_erasures, audit_restores TO taskflow_scheduler;
GRANT UPDATE (finished_at, events) ON audit_erasures TO taskflow_scheduler;
-- Reading a seal needs no secrets of users or keys.
REVOKE SELECT ON users, api_keys FROM taskflow_reader;
