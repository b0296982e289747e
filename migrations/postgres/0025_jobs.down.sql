DROP TABLE job_runs;
DROP TABLE job_schedules;
DROP TABLE scheduler_leader;
