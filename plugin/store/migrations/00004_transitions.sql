-- +goose Up
-- What the verdicts of a continuous run were, one after the other; the last of them.
CREATE TABLE transitions (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    run    INTEGER NOT NULL REFERENCES runs (run),
    result BLOB    NOT NULL -- dyetrace.v1.PairResult
) STRICT;
CREATE INDEX transitions_run ON transitions (run, number);

-- +goose Down
DROP TABLE transitions;
