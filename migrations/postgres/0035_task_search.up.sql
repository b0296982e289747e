-- Full text over titles and descriptions, kept beside the tasks. A GIN index on `tasks` itself would more than double
-- the cost of inserting them (docs/reads.md has the figures), so a writer only notes which tasks have new texts, and
-- workers index them in bulk, aside. A search reads the index and looks through what is noted.
CREATE TABLE task_texts (
    task_id UUID PRIMARY KEY,
    document TSVECTOR NOT NULL
);
CREATE INDEX idx_task_texts_document ON task_texts USING gin (document);

-- Tasks whose entry in task_texts is out of date. No key: noting must cost next to nothing.
CREATE TABLE search_pending (
    task_id UUID NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);

-- What a search looks through. No stemming: nobody knows the language of a task.
CREATE FUNCTION task_document(title TEXT, description TEXT) RETURNS TSVECTOR
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN setweight(to_tsvector('simple'::regconfig, title), 'A')
        || setweight(to_tsvector('simple'::regconfig, coalesce(description, '')), 'B');

-- Triggers and not the writers' statements: whatever writes a task, also a release that knows nothing of this.
CREATE FUNCTION note_new_texts() RETURNS TRIGGER LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO search_pending SELECT id FROM written;
    RETURN NULL;
END $$;

CREATE FUNCTION note_changed_texts() RETURNS TRIGGER LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO search_pending
    SELECT n.id FROM written n JOIN before b USING (id)
    WHERE (n.title, n.description, n.deleted_at) IS DISTINCT FROM (b.title, b.description, b.deleted_at);
    RETURN NULL;
END $$;

CREATE TRIGGER tasks_new_texts AFTER INSERT ON tasks
    REFERENCING NEW TABLE AS written FOR EACH STATEMENT EXECUTE FUNCTION note_new_texts();
CREATE TRIGGER tasks_changed_texts AFTER UPDATE ON tasks
    REFERENCING OLD TABLE AS before NEW TABLE AS written FOR EACH STATEMENT EXECUTE FUNCTION note_changed_texts();

INSERT INTO search_pending SELECT id FROM tasks WHERE deleted_at IS NULL;
