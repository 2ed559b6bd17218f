package main

import (
	"context"
	"errors"

	"connectrpc.com/connect"

	"github.com/dyetrace/dyetrace/cmd/dyetrace/internal/access"
)

// Exit codes, for scripts; docs/cli.md explains them.
const (
	exitPass         = 0
	exitFailed       = 1 // check, run: no connectivity; doctor: something is amiss; else: it failed
	exitUsage        = 2
	exitInconclusive = 3
	exitUnreachable  = 4
	exitInterrupted  = 130 // 128 + SIGINT, as shells have it
)

// exitError is an error that knows its exit code. Without err nothing is left to be said.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return "exit"
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// usage marks an error that only other input can mend.
func usage(err error) error { return &exitError{code: exitUsage, err: err} }

// exitCode maps an error to the exit code.
func exitCode(err error) int {
	var exit *exitError
	var rpc *connect.Error
	switch {
	case err == nil:
		return exitPass
	case errors.As(err, &exit):
		return exit.code
	case errors.Is(err, access.ErrNoContext), errors.Is(err, access.ErrBadContext):
		return exitUsage
	case errors.As(err, &rpc):
		return rpcExitCode(rpc.Code())
	case errors.Is(err, context.Canceled):
		return exitInterrupted
	}
	return exitFailed
}

func rpcExitCode(code connect.Code) int {
	switch code {
	case connect.CodeInvalidArgument, connect.CodeNotFound, connect.CodeFailedPrecondition,
		connect.CodeAlreadyExists, connect.CodeOutOfRange:
		return exitUsage
	case connect.CodeCanceled:
		return exitInterrupted
	case connect.CodeUnavailable, connect.CodeDeadlineExceeded,
		connect.CodeUnauthenticated, connect.CodePermissionDenied:
		// Refused at the door is as good as not there, for whoever asks.
		return exitUnreachable
	}
	return exitInconclusive
}
