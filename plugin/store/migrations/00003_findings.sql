-- +goose Up
-- Runs from before have none.
ALTER TABLE runs ADD COLUMN findings BLOB NOT NULL DEFAULT x''; -- dyetrace.v1.Run, of which only findings are set

-- +goose Down
ALTER TABLE runs DROP COLUMN findings;
