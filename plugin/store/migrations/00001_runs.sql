-- +goose Up
CREATE TABLE runs (
    run        INTEGER PRIMARY KEY,
    id         TEXT    NOT NULL UNIQUE,
    state      INTEGER NOT NULL, -- dyetrace.v1.RunState
    scope      BLOB    NOT NULL, -- dyetrace.v1.Scope
    started_ns INTEGER NOT NULL, -- since the Unix epoch
    ended_ns   INTEGER,          -- NULL while running, and where nobody saw the end
    timeout_ns INTEGER NOT NULL,
    total      INTEGER NOT NULL,
    healthy    INTEGER NOT NULL DEFAULT 0,
    faulty     INTEGER NOT NULL DEFAULT 0,
    silent     INTEGER NOT NULL DEFAULT 0,
    policy     INTEGER NOT NULL DEFAULT 0,
    unknown    INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE TABLE pairs (
    run         INTEGER NOT NULL REFERENCES runs (run),
    seq         INTEGER NOT NULL, -- place in the plan
    src_network TEXT    NOT NULL,
    src         TEXT    NOT NULL,
    dst_network TEXT    NOT NULL,
    dst         TEXT    NOT NULL,
    PRIMARY KEY (run, seq)
) STRICT, WITHOUT ROWID;

CREATE TABLE results (
    run     INTEGER NOT NULL REFERENCES runs (run),
    seq     INTEGER NOT NULL,
    verdict INTEGER NOT NULL, -- dyetrace.v1.Verdict
    result  BLOB    NOT NULL, -- dyetrace.v1.PairResult
    UNIQUE (run, seq)
) STRICT;

-- +goose Down
DROP TABLE results;
DROP TABLE pairs;
DROP TABLE runs;
