DROP TABLE dead_letters;
DROP TABLE dead_letter_replays;
