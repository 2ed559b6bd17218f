package main

import (
	"fmt"
	"log/slog"

	"github.com/spf13/cobra"
)

// logging is how a daemon logs: to standard error, for journald or a file.
type logging struct {
	level  string
	format string
}

func (l *logging) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&l.level, "log-level", "info", "`LEVEL` from which to log: debug, info, warn or error")
	f.StringVar(&l.format, "log-format", "text", "`FORMAT` of the log: text or json")
	must(cmd.RegisterFlagCompletionFunc("log-level", cobra.FixedCompletions(
		[]string{"debug", "info", "warn", "error"}, cobra.ShellCompDirectiveNoFileComp)))
	must(cmd.RegisterFlagCompletionFunc("log-format", cobra.FixedCompletions(
		[]string{"text", "json"}, cobra.ShellCompDirectiveNoFileComp)))
}

// logger returns the logger, and makes it the one of packages that were given none.
func (l *logging) logger(cmd *cobra.Command) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(l.level)); err != nil {
		return nil, usage(fmt.Errorf("--log-level: %q; want debug, info, warn or error", l.level))
	}
	opts := &slog.HandlerOptions{Level: level}
	var h slog.Handler
	switch l.format {
	case "text":
		h = slog.NewTextHandler(cmd.ErrOrStderr(), opts)
	case "json":
		h = slog.NewJSONHandler(cmd.ErrOrStderr(), opts)
	default:
		return nil, usage(fmt.Errorf("--log-format: %q; want text or json", l.format))
	}
	log := slog.New(h)
	slog.SetDefault(log)
	return log, nil
}
