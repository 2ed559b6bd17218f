package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/cmd/dyetrace/internal/report"
)

// live prints a continuous run as it goes on: a line for each change; on a terminal one more, below,
// that says how all pairs stand and is overwritten in place.
type live struct {
	cmd      *cobra.Command
	out      output
	progress *progress
	run      report.Run
	pairs    map[string]*dyetracev1.PairResult
	begun    bool   // all pairs have a verdict
	told     string // what pairs have in common
	losing   string // what loses besides
}

func newLive(cmd *cobra.Command, out output) *live {
	return &live{cmd: cmd, out: out, progress: newProgress(cmd), pairs: map[string]*dyetracev1.PairResult{}}
}

// pairKey tells the pairs of a run apart.
func pairKey(p *dyetracev1.PairResult) string {
	return p.GetSrc().GetNetwork() + "/" + p.GetSrc().GetName() + " " + p.GetDst().GetNetwork() + "/" + p.GetDst().GetName()
}

// take takes in a verdict.
func (l *live) take(p *dyetracev1.PairResult) error {
	v, key := report.NewPair(p), pairKey(p)
	old := l.pairs[key]
	l.pairs[key] = p
	first := old == nil
	switch {
	case l.out.format.String() != "table":
		return l.out.stream(l.cmd, v)
	case first && v.Verdict == "healthy" || !first && old.GetChanges() == p.GetChanges() && old.GetSince().AsTime().Equal(p.GetSince().AsTime()):
		// That all is well to begin with is said once; what was missed is not told twice.
	default:
		l.progress.end()
		if err := v.Change(l.cmd.OutOrStdout(), colors(l.cmd.OutOrStdout())); err != nil {
			return err
		}
	}
	return l.stand()
}

// common tells what pairs that are not healthy have in common, if that is other than before.
func (l *live) common(run *dyetracev1.Run) error {
	c := report.NewCheck(run, nil)
	told := c.InCommon()
	if told == l.told || run.GetState() != dyetracev1.RunState_RUN_STATE_RUNNING || l.out.format.String() != "table" {
		return nil
	}
	l.told = told
	l.progress.end()
	return c.WriteCommon(l.cmd.OutOrStdout(), colors(l.cmd.OutOrStdout()))
}

// loses tells what is known to lose and is no pair's verdict, if that is other than before.
func (l *live) loses() error {
	losing := l.run.Losing()
	if losing == l.losing || l.run.State != "running" || l.out.format.String() != "table" {
		return nil
	}
	l.losing = losing
	l.progress.end()
	return l.run.WriteLosing(l.cmd.OutOrStdout(), colors(l.cmd.OutOrStdout()))
}

// stand says how all pairs stand: once for all when the first round is over, then on a terminal only.
func (l *live) stand() error {
	now := time.Now()
	counts := report.Counts{}
	for _, p := range l.pairs {
		counts.Add(report.Verdict(p.GetVerdict()))
	}
	l.run.Counts = counts
	if !l.begun && l.run.Total > 0 && counts.Judged() == l.run.Total && l.out.format.String() == "table" {
		l.begun = true
		l.progress.end()
		if _, err := fmt.Fprintf(l.cmd.OutOrStdout(), "%s (run %s); what changes from now on:\n", l.run.Standing(now, now), l.run.Run); err != nil {
			return err
		}
	}
	l.progress.line(l.run.Standing(l.progress.begun, now))
	return nil
}

// followContinuous watches a continuous run to its end, and returns its verdict as an error for the
// exit code. When ctx is interrupted it cancels the run.
func followContinuous(ctx context.Context, cmd *cobra.Command, s *session, run *dyetracev1.Run, out output, show textFlags) error {
	l := newLive(cmd, out)
	last, err := l.watch(ctx, s, run)
	l.progress.end()
	if cmd.Context().Err() != nil {
		return cancelRun(cmd, s, run.GetId())
	}
	if err != nil {
		err = s.explain(err)
		return &exitError{exitCode(err), fmt.Errorf("%w\nthe run may go on: dyetrace run %s", err, run.GetId())}
	}
	pairs := make([]*dyetracev1.PairResult, 0, len(l.pairs))
	for _, p := range l.pairs {
		pairs = append(pairs, p)
	}
	c := report.NewCheck(last, pairs)
	if out.format.String() == "table" {
		return printCheck(ctx, cmd, s, c, out, show)
	}
	return concluded(ctx, s, c)
}

// watch shows a run until it ends, and returns how it ended.
func (l *live) watch(ctx context.Context, s *session, run *dyetracev1.Run) (*dyetracev1.Run, error) {
	stream, err := s.WatchRun(ctx, connect.NewRequest(&dyetracev1.WatchRunRequest{Id: run.GetId()}))
	if err != nil {
		return run, err
	}
	defer stream.Close()
	ended := false
	for stream.Receive() {
		if n := stream.Msg().GetMissed(); n > 0 {
			l.progress.end()
			fmt.Fprintf(l.cmd.ErrOrStderr(), "%d verdicts came too fast to be told; how pairs stand now follows\n", n)
		}
		switch e := stream.Msg().GetEvent().(type) {
		case *dyetracev1.WatchRunResponse_Run:
			run = e.Run
			l.run = report.NewRun(run)
			if err := errors.Join(l.common(run), l.loses()); err != nil {
				return run, err
			}
			ended = run.GetState() != dyetracev1.RunState_RUN_STATE_RUNNING
		case *dyetracev1.WatchRunResponse_Pair:
			if err := l.take(e.Pair); err != nil {
				return run, err
			}
		}
	}
	if err := stream.Err(); err != nil {
		return run, err
	}
	if !ended {
		return run, connect.NewError(connect.CodeUnavailable, errors.New("it ended the answer before the run had ended"))
	}
	return run, nil
}

// stream writes one of many objects: a line of JSON, or a document of YAML.
func (o *output) stream(cmd *cobra.Command, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("output: %w", err)
	}
	if o.format == "yaml" {
		if _, err := fmt.Fprintln(cmd.OutOrStdout(), "---"); err != nil {
			return err
		}
		return writeYAML(cmd.OutOrStdout(), b)
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s\n", b)
	return err
}
