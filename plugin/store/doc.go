// Package store keeps runs and their verdicts in an SQL database; SQLite, embedded, for now.
// It never judges, and it never changes a verdict once that was written.
//
// # What an answer means
//
// A call that returned nil is on disk: the database runs in WAL mode with synchronous=FULL, so
// that what was acknowledged outlives kill -9 of the process and a power cut (sqlite.org,
// "PRAGMA synchronous"). A call that returned an error left no trace.
//
// # Who may write
//
// One process has a database at a time, held by flock(2) on FILE.lock; a second one is refused
// with [ErrLocked]. This is what makes it safe for [Open] to conclude that runs which are still
// marked as running belong to a process that is gone. Within the process all writes go through
// one connection, and readers never wait for it.
//
// # Layout
//
// Table runs has a row per run, with what was asked (scope, options) as protobuf, and its counts by
// verdict, so that listing runs reads no pairs.
// Table pairs has the plan, table results the verdicts: a column each for what is searched, and
// the whole PairResult as protobuf. Both are only ever appended to.
package store
