DROP TABLE audit_restores;
DROP TABLE audit_erasures;
DROP TABLE audit_seals;
ALTER TABLE system_events DROP COLUMN link, DROP COLUMN salt;
DROP TABLE audit_system_head;
DROP TABLE audit_links;
ALTER TABLE partition_heads DROP COLUMN chain;
