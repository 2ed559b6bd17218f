package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/pressly/goose/v3"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
	_ "modernc.org/sqlite" // the database/sql driver "sqlite"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/plugin/verdict"
)

// Errors that a caller may want to tell apart.
var (
	// ErrNotFound says that no run has that id.
	ErrNotFound = errors.New("no such run")
	// ErrAmbiguous says that several runs have ids that begin so.
	ErrAmbiguous = errors.New("more than one run begins with this id")
	// ErrState says that a run is not in a state that allows what was asked.
	ErrState = errors.New("run is in another state")
	// ErrLocked says that another process has the database open.
	ErrLocked = errors.New("held by another process")
)

//go:embed migrations/*.sql
var migrations embed.FS

// readers bounds the connections that read. Four is enough for two cores, and each holds a page
// cache of 2 MB (sqlite's default).
const readers = 4

// Store is an open database. Its methods may be called from many goroutines.
type Store struct {
	write *sql.DB // one connection, so that writers queue here and not in SQLITE_BUSY
	read  *sql.DB
	lock  *os.File
	ids   ids
}

// Open opens the database in the file at path, and makes or migrates it where needed. Runs that
// are marked as running were left by a process that is gone: they become interrupted.
//
// The error wraps [ErrLocked] if another process has the database open.
func Open(ctx context.Context, path string) (*Store, error) {
	s := &Store{}
	if err := s.open(ctx, path); err != nil {
		return nil, errors.Join(fmt.Errorf("store %s: %w", path, err), s.Close())
	}
	return s, nil
}

func (s *Store) open(ctx context.Context, path string) (err error) {
	if s.lock, err = lockFile(path + ".lock"); err != nil {
		return err
	}
	// The driver would make it with the umask's mode; verdicts tell who talks to whom.
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}

	if s.write, err = openDB(path, "_txlock=immediate"); err != nil {
		return err
	}
	s.write.SetMaxOpenConns(1)
	dir, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	p, err := goose.NewProvider(goose.DialectSQLite3, s.write, dir)
	if err != nil {
		return fmt.Errorf("migrations: %w", err)
	}
	if _, err := p.Up(ctx); err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	_, err = s.write.ExecContext(ctx, `UPDATE runs SET state = ? WHERE state = ?`,
		dyetracev1.RunState_RUN_STATE_INTERRUPTED, dyetracev1.RunState_RUN_STATE_RUNNING)
	if err != nil {
		return fmt.Errorf("mark interrupted runs: %w", err)
	}

	if s.read, err = openDB(path, "_pragma=query_only(1)"); err != nil {
		return err
	}
	s.read.SetMaxOpenConns(readers)
	return nil
}

func openDB(path, option string) (*sql.DB, error) {
	// busy_timeout is for a person with the sqlite3 shell; ours never wait for each other.
	dsn := "file:" + (&url.URL{Path: path}).EscapedPath() + "?" + strings.Join([]string{
		"_pragma=busy_timeout(5000)",
		"_pragma=journal_mode(WAL)",
		"_pragma=synchronous(FULL)",
		"_pragma=foreign_keys(1)",
		option,
	}, "&")
	return sql.Open("sqlite", dsn)
}

func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%s: %w", path, ErrLocked)
		}
		return nil, fmt.Errorf("flock %s: %w", path, err)
	}
	return f, nil
}

// Close closes the database. The lock file stays: to remove it would race with the next process.
func (s *Store) Close() error {
	var errs []error
	if s.read != nil {
		errs = append(errs, s.read.Close())
	}
	if s.write != nil {
		errs = append(errs, s.write.Close())
	}
	if s.lock != nil {
		errs = append(errs, s.lock.Close())
	}
	return errors.Join(errs...)
}

// CreateRun writes a run that starts now, with its plan: results of which only source and
// destination count. It returns the run, with a new id. Options that are nil are zero.
func (s *Store) CreateRun(ctx context.Context, scope *dyetracev1.Scope, opts *dyetracev1.ProbeOptions, now time.Time, timeout time.Duration, plan []*dyetracev1.PairResult) (*dyetracev1.Run, error) {
	asked, err := proto.Marshal(scope)
	if err != nil {
		return nil, fmt.Errorf("create run: scope: %w", err)
	}
	if opts == nil {
		opts = &dyetracev1.ProbeOptions{}
	}
	how, err := proto.Marshal(opts)
	if err != nil {
		return nil, fmt.Errorf("create run: options: %w", err)
	}
	run := &dyetracev1.Run{
		Id:      s.ids.next(now),
		State:   dyetracev1.RunState_RUN_STATE_RUNNING,
		Scope:   scope,
		Options: opts,
		Started: timestamppb.New(now),
		Total:   uint32(len(plan)),
		Counts:  &dyetracev1.Counts{},
	}
	err = s.tx(ctx, func(tx *sql.Tx) error {
		res, err := tx.ExecContext(ctx,
			`INSERT INTO runs (id, state, scope, options, started_ns, timeout_ns, total) VALUES (?, ?, ?, ?, ?, ?, ?)`,
			run.Id, run.State, nonNil(asked), nonNil(how), now.UnixNano(), int64(timeout), len(plan))
		if err != nil {
			return err
		}
		key, err := res.LastInsertId()
		if err != nil {
			return err
		}
		return insertPlan(ctx, tx, key, plan)
	})
	if err != nil {
		return nil, fmt.Errorf("create run: %w", err)
	}
	return run, nil
}

// nonNil keeps an empty message from becoming NULL.
func nonNil(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

func insertPlan(ctx context.Context, tx *sql.Tx, key int64, plan []*dyetracev1.PairResult) error {
	const columns = 6
	rows := make([]any, 0, columns*min(len(plan), insertRows))
	for i, p := range plan {
		rows = append(rows, key, i, p.GetSrc().GetNetwork(), p.GetSrc().GetName(), p.GetDst().GetNetwork(), p.GetDst().GetName())
		if len(rows) < columns*insertRows && i < len(plan)-1 {
			continue
		}
		q := `INSERT INTO pairs (run, seq, src_network, src, dst_network, dst) VALUES ` + values(len(rows)/columns, columns)
		if _, err := tx.ExecContext(ctx, q, rows...); err != nil {
			return fmt.Errorf("pairs up to %d: %w", i, err)
		}
		rows = rows[:0]
	}
	return nil
}

// insertRows is how many rows one INSERT has. Measured with 10,000 pairs on two busy cores: 1 row
// 162 ms, 8 rows 75 ms, 64 rows 67 ms, 512 rows 72 ms.
const insertRows = 64

// values returns "(?,?),(?,?)" for rows and columns.
func values(rows, columns int) string {
	row := "(" + strings.TrimSuffix(strings.Repeat("?,", columns), ",") + ")"
	return strings.TrimSuffix(strings.Repeat(row+",", rows), ",")
}

// PutResults writes verdicts of a running run: results[i] is the verdict on the pair with number
// seq[i] of the plan. A pair that has a verdict keeps it, and the later one is dropped. All of them
// are written, or none. The error wraps [ErrState] if the run is not running.
func (s *Store) PutResults(ctx context.Context, id string, seq []uint32, results []*dyetracev1.PairResult) error {
	if len(seq) != len(results) {
		return fmt.Errorf("put results of run %s: %d numbers for %d results", id, len(seq), len(results))
	}
	err := s.tx(ctx, func(tx *sql.Tx) error {
		key, total, err := runningRun(ctx, tx, id)
		if err != nil {
			return err
		}
		insert, err := tx.PrepareContext(ctx, `INSERT INTO results (run, seq, verdict, result) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING`)
		if err != nil {
			return err
		}
		defer insert.Close()
		var counts dyetracev1.Counts
		var b []byte
		for i, r := range results {
			if int64(seq[i]) >= total {
				return fmt.Errorf("pair %d of %d", seq[i], total)
			}
			if b, err = (proto.MarshalOptions{}).MarshalAppend(b[:0], r); err != nil {
				return fmt.Errorf("pair %d: %w", seq[i], err)
			}
			res, err := insert.ExecContext(ctx, key, seq[i], r.GetVerdict(), nonNil(b))
			if err != nil {
				return fmt.Errorf("pair %d: %w", seq[i], err)
			}
			if n, err := res.RowsAffected(); err != nil {
				return fmt.Errorf("pair %d: %w", seq[i], err)
			} else if n > 0 {
				if err := count(&counts, r.GetVerdict()); err != nil {
					return fmt.Errorf("pair %d: %w", seq[i], err)
				}
			}
		}
		_, err = tx.ExecContext(ctx, `UPDATE runs SET healthy = healthy + ?, faulty = faulty + ?, silent = silent + ?,
			policy = policy + ?, unknown = unknown + ? WHERE run = ?`,
			counts.Healthy, counts.Faulty, counts.Silent, counts.Policy, counts.Unknown, key)
		return err
	})
	if err != nil {
		return fmt.Errorf("put results of run %s: %w", id, err)
	}
	return nil
}

// keptTransitions is how many of a run are kept: enough to tell what happened in a bad night.
const keptTransitions = 10_000

// PutTransitions is PutResults for a continuous run: verdicts take the place of those before, and the
// last 10,000 of the run are kept as its transitions, too.
func (s *Store) PutTransitions(ctx context.Context, id string, seq []uint32, results []*dyetracev1.PairResult) error {
	if len(seq) != len(results) {
		return fmt.Errorf("put transitions of run %s: %d numbers for %d results", id, len(seq), len(results))
	}
	err := s.tx(ctx, func(tx *sql.Tx) error {
		key, total, err := runningRun(ctx, tx, id)
		if err != nil {
			return err
		}
		for i, r := range results {
			if int64(seq[i]) >= total {
				return fmt.Errorf("pair %d of %d", seq[i], total)
			}
			if err := count(&dyetracev1.Counts{}, r.GetVerdict()); err != nil {
				return fmt.Errorf("pair %d: %w", seq[i], err)
			}
			b, err := proto.Marshal(r)
			if err != nil {
				return fmt.Errorf("pair %d: %w", seq[i], err)
			}
			if _, err := tx.ExecContext(ctx, `INSERT INTO results (run, seq, verdict, result) VALUES (?, ?, ?, ?)
				ON CONFLICT (run, seq) DO UPDATE SET verdict = excluded.verdict, result = excluded.result`,
				key, seq[i], r.GetVerdict(), nonNil(b)); err != nil {
				return fmt.Errorf("pair %d: %w", seq[i], err)
			}
			if _, err := tx.ExecContext(ctx, `INSERT INTO transitions (run, result) VALUES (?, ?)`, key, nonNil(b)); err != nil {
				return fmt.Errorf("pair %d: %w", seq[i], err)
			}
		}
		if _, err := tx.ExecContext(ctx, `DELETE FROM transitions WHERE run = ? AND number <=
			(SELECT number FROM transitions WHERE run = ? ORDER BY number DESC LIMIT 1 OFFSET ?)`, key, key, keptTransitions); err != nil {
			return err
		}
		return recount(ctx, tx, key)
	})
	if err != nil {
		return fmt.Errorf("put transitions of run %s: %w", id, err)
	}
	return nil
}

// recount sets a run's counts to those of its results.
func recount(ctx context.Context, tx *sql.Tx, key int64) error {
	_, err := tx.ExecContext(ctx, `UPDATE runs SET (healthy, faulty, silent, policy, unknown) = (
		SELECT COALESCE(SUM(verdict = ?), 0), COALESCE(SUM(verdict = ?), 0), COALESCE(SUM(verdict = ?), 0),
			COALESCE(SUM(verdict = ?), 0), COALESCE(SUM(verdict = ?), 0) FROM results WHERE run = ?) WHERE run = ?`,
		dyetracev1.Verdict_VERDICT_HEALTHY, dyetracev1.Verdict_VERDICT_FAULTY, dyetracev1.Verdict_VERDICT_SILENT,
		dyetracev1.Verdict_VERDICT_POLICY, dyetracev1.Verdict_VERDICT_UNKNOWN, key, key)
	return err
}

// Transitions returns the last verdicts that a continuous run put, at most limit, the oldest first.
func (s *Store) Transitions(ctx context.Context, id string, limit int) ([]*dyetracev1.PairResult, error) {
	rows, err := s.read.QueryContext(ctx, `SELECT t.result FROM transitions t JOIN runs USING (run)
		WHERE runs.id = ? ORDER BY t.number DESC LIMIT ?`, id, limit)
	if err != nil {
		return nil, fmt.Errorf("transitions of run %s: %w", id, err)
	}
	defer rows.Close()
	var all []*dyetracev1.PairResult
	var b sql.RawBytes
	for rows.Next() {
		p := &dyetracev1.PairResult{}
		if err := rows.Scan(&b); err != nil {
			return nil, fmt.Errorf("transitions of run %s: %w", id, err)
		}
		if err := proto.Unmarshal(b, p); err != nil {
			return nil, fmt.Errorf("transitions of run %s: %w", id, err)
		}
		all = append(all, p)
	}
	slices.Reverse(all)
	return all, rows.Err()
}

// count counts a pair with a verdict.
func count(c *dyetracev1.Counts, v dyetracev1.Verdict) error {
	of := verdict.CountOf(c, v)
	if of == nil {
		return fmt.Errorf("%v is no verdict", v)
	}
	*of++
	return nil
}

// runningRun returns the key of a running run and the size of its plan.
func runningRun(ctx context.Context, tx *sql.Tx, id string) (key, total int64, err error) {
	var state dyetracev1.RunState
	err = tx.QueryRowContext(ctx, `SELECT run, total, state FROM runs WHERE id = ?`, id).Scan(&key, &total, &state)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return 0, 0, ErrNotFound
	case err != nil:
		return 0, 0, err
	case state != dyetracev1.RunState_RUN_STATE_RUNNING:
		return 0, 0, fmt.Errorf("%w: %s", ErrState, stateWord(state))
	}
	return key, total, nil
}

// stateWord writes a state for people: RUN_STATE_DONE as done.
func stateWord(s dyetracev1.RunState) string {
	return strings.ToLower(strings.TrimPrefix(s.String(), "RUN_STATE_"))
}

// FinishRun ends a running run: it is in the given state from now on, with these findings. The error
// wraps [ErrState] if the run is not running.
func (s *Store) FinishRun(ctx context.Context, id string, state dyetracev1.RunState, findings []*dyetracev1.Finding, now time.Time) error {
	found, err := proto.Marshal(&dyetracev1.Run{Findings: findings})
	if err != nil {
		return fmt.Errorf("finish run %s: findings: %w", id, err)
	}
	err = s.tx(ctx, func(tx *sql.Tx) error {
		key, _, err := runningRun(ctx, tx, id)
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `UPDATE runs SET state = ?, ended_ns = ?, findings = ? WHERE run = ?`,
			state, now.UnixNano(), nonNil(found), key)
		return err
	})
	if err != nil {
		return fmt.Errorf("finish run %s: %w", id, err)
	}
	return nil
}

// ResumeRun marks an interrupted run as running again, and returns it with its timeout. The error
// wraps [ErrNotFound], or [ErrState] if the run is not interrupted.
func (s *Store) ResumeRun(ctx context.Context, id string) (*dyetracev1.Run, time.Duration, error) {
	var timeout int64
	err := s.tx(ctx, func(tx *sql.Tx) error {
		var state dyetracev1.RunState
		err := tx.QueryRowContext(ctx, `SELECT state, timeout_ns FROM runs WHERE id = ?`, id).Scan(&state, &timeout)
		switch {
		case errors.Is(err, sql.ErrNoRows):
			return ErrNotFound
		case err != nil:
			return err
		case state != dyetracev1.RunState_RUN_STATE_INTERRUPTED:
			return fmt.Errorf("%w: %s, want interrupted", ErrState, stateWord(state))
		}
		_, err = tx.ExecContext(ctx, `UPDATE runs SET state = ?, ended_ns = NULL, findings = x'' WHERE id = ?`,
			dyetracev1.RunState_RUN_STATE_RUNNING, id)
		return err
	})
	if err != nil {
		return nil, 0, fmt.Errorf("resume run %s: %w", id, err)
	}
	r, err := s.Run(ctx, id)
	return r, time.Duration(timeout), err
}

// runColumns are followed by findings, which a list of runs leaves empty.
const runColumns = `id, state, scope, options, started_ns, ended_ns, total, healthy, faulty, silent, policy, unknown`

// Run returns the run whose id is or begins with id. It has no verdict of its own; that is for
// the caller to conclude from the counts. The error wraps [ErrNotFound] or [ErrAmbiguous].
func (s *Store) Run(ctx context.Context, id string) (*dyetracev1.Run, error) {
	if id == "" {
		return nil, fmt.Errorf("run with an empty id: %w", ErrNotFound)
	}
	// substr and not LIKE: an id from outside may have % in it.
	runs, err := s.runs(ctx, `SELECT `+runColumns+`, findings FROM runs WHERE id >= ? AND substr(id, 1, ?) = ? ORDER BY id LIMIT 2`,
		id, len(id), id)
	switch {
	case err != nil:
		return nil, fmt.Errorf("run %s: %w", id, err)
	case len(runs) == 0:
		return nil, fmt.Errorf("run %s: %w", id, ErrNotFound)
	case len(runs) > 1 && runs[0].Id != id:
		return nil, fmt.Errorf("run %s: %w", id, ErrAmbiguous)
	}
	return runs[0], nil
}

// Runs returns at most limit runs, newest first; only those older than the run before, unless
// before is empty. They are without their findings.
func (s *Store) Runs(ctx context.Context, before string, limit int) ([]*dyetracev1.Run, error) {
	runs, err := s.runs(ctx, `SELECT `+runColumns+`, x'' FROM runs WHERE ? = '' OR id < ? ORDER BY id DESC LIMIT ?`, before, before, limit)
	if err != nil {
		return nil, fmt.Errorf("list runs: %w", err)
	}
	return runs, nil
}

func (s *Store) runs(ctx context.Context, query string, args ...any) ([]*dyetracev1.Run, error) {
	rows, err := s.read.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var runs []*dyetracev1.Run
	for rows.Next() {
		r := &dyetracev1.Run{Scope: &dyetracev1.Scope{}, Options: &dyetracev1.ProbeOptions{}, Counts: &dyetracev1.Counts{}}
		var scope, options, findings []byte
		var started int64
		var ended sql.NullInt64
		c := r.Counts
		err := rows.Scan(&r.Id, &r.State, &scope, &options, &started, &ended, &r.Total,
			&c.Healthy, &c.Faulty, &c.Silent, &c.Policy, &c.Unknown, &findings)
		if err != nil {
			return nil, err
		}
		if err := proto.Unmarshal(scope, r.Scope); err != nil {
			return nil, fmt.Errorf("scope of run %s: %w", r.Id, err)
		}
		if err := proto.Unmarshal(options, r.Options); err != nil {
			return nil, fmt.Errorf("options of run %s: %w", r.Id, err)
		}
		if err := (proto.UnmarshalOptions{Merge: true}).Unmarshal(findings, r); err != nil {
			return nil, fmt.Errorf("findings of run %s: %w", r.Id, err)
		}
		r.Started = timestamppb.New(time.Unix(0, started))
		if ended.Valid {
			r.Ended = timestamppb.New(time.Unix(0, ended.Int64))
		}
		runs = append(runs, r)
	}
	return runs, rows.Err()
}

// Pairs returns the plan of the run with exactly this id, in order: a pair that was judged as its
// result, any other with source and destination only.
func (s *Store) Pairs(ctx context.Context, id string) ([]*dyetracev1.PairResult, error) {
	pairs, err := s.pairs(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("pairs of run %s: %w", id, err)
	}
	return pairs, nil
}

func (s *Store) pairs(ctx context.Context, id string) ([]*dyetracev1.PairResult, error) {
	rows, err := s.read.QueryContext(ctx, `
		SELECT p.src_network, p.src, p.dst_network, p.dst, r.result
		FROM runs JOIN pairs p USING (run) LEFT JOIN results r ON r.run = p.run AND r.seq = p.seq
		WHERE runs.id = ? ORDER BY p.seq`, id)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var pairs []*dyetracev1.PairResult
	var result sql.RawBytes
	for rows.Next() {
		p := &dyetracev1.PairResult{Src: &dyetracev1.InstanceRef{}, Dst: &dyetracev1.InstanceRef{}}
		if err := rows.Scan(&p.Src.Network, &p.Src.Name, &p.Dst.Network, &p.Dst.Name, &result); err != nil {
			return nil, err
		}
		if result != nil {
			if err := proto.Unmarshal(result, p); err != nil {
				return nil, fmt.Errorf("pair %d: %w", len(pairs), err)
			}
		}
		pairs = append(pairs, p)
	}
	return pairs, rows.Err()
}

// tx runs f in a transaction of the one writing connection.
func (s *Store) tx(ctx context.Context, f func(*sql.Tx) error) error {
	tx, err := s.write.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	if err := f(tx); err != nil {
		// A cancelled ctx has rolled back already.
		if rerr := tx.Rollback(); rerr != nil && !errors.Is(rerr, sql.ErrTxDone) {
			return errors.Join(err, fmt.Errorf("roll back: %w", rerr))
		}
		return err
	}
	return tx.Commit()
}
