DROP TRIGGER tasks_changed_texts ON tasks;
DROP TRIGGER tasks_new_texts ON tasks;
DROP FUNCTION note_changed_texts();
DROP FUNCTION note_new_texts();
DROP FUNCTION task_document(TEXT, TEXT);
DROP TABLE search_pending;
DROP TABLE task_texts;
