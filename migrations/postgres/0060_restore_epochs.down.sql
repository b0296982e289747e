DROP TABLE restore_epochs;
