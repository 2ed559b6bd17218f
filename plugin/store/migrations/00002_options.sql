-- +goose Up
-- Runs from before have the zero value: scheme and IP version found out, guests touched.
ALTER TABLE runs ADD COLUMN options BLOB NOT NULL DEFAULT x''; -- dyetrace.v1.ProbeOptions

-- +goose Down
ALTER TABLE runs DROP COLUMN options;
