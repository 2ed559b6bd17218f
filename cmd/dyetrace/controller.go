package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/dyetrace/dyetrace/api/dyetrace/v1/dyetracev1connect"
	"github.com/dyetrace/dyetrace/cmd/dyetrace/internal/access"
)

// requestTimeout bounds a single question to the controller unless --timeout says otherwise: a
// healthy one answers in milliseconds, a far one with a lost packet or two in seconds.
const requestTimeout = 10 * time.Second

// controller is how one verb reaches the controller: its flags, and a client when it is needed.
type controller struct {
	options access.Options
	timeout time.Duration
}

func (c *controller) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&c.options.Server, "server", "", "controller, `https://HOST:PORT` or unix:///PATH")
	f.StringVar(&c.options.ServerName, "server-name", "", "`NAME` that the controller's certificate must bear, if not that of --server")
	f.StringVar(&c.options.TLS.CA, "ca", "", "PEM `FILE` of the CAs to trust")
	f.StringVar(&c.options.TLS.Cert, "cert", "", "PEM `FILE` of this user's certificate")
	f.StringVar(&c.options.TLS.Key, "key", "", "PEM `FILE` of this user's private key")
	f.StringVar(&c.options.File, "context", "", "context `FILE` that holds these instead")
	f.StringVar(&c.options.Lab, "lab", "", "use the lab called `NAME`")
	must(cmd.MarkFlagFilename("ca"))
	must(cmd.MarkFlagFilename("cert"))
	must(cmd.MarkFlagFilename("key"))
	must(cmd.MarkFlagFilename("context", "yaml", "yml"))
}

// timeoutFlag adds --timeout as the bound on each question to the controller.
func (c *controller) timeoutFlag(cmd *cobra.Command) {
	cmd.Flags().DurationVar(&c.timeout, "timeout", requestTimeout, "give up after this `TIME`")
}

// session is a client, and what to say about it in errors.
type session struct {
	dyetracev1connect.ControllerServiceClient
	server string
	close  func()
}

// dial returns a client; it must be closed.
func (c *controller) dial(cmd *cobra.Command) (*session, error) {
	ctx, err := access.Resolve(c.options)
	if err != nil {
		return nil, err
	}
	if ctx.Lab != "" && isTerminal(cmd.ErrOrStderr()) {
		fmt.Fprintf(cmd.ErrOrStderr(), "using lab %s (%s)\n", ctx.Lab, ctx.Server)
	}
	client, closeFn, err := ctx.Client()
	if err != nil {
		return nil, err
	}
	return &session{client, ctx.Server, closeFn}, nil
}

// ask dials, lets fn put one question within the timeout, and explains what went wrong.
func (c *controller) ask(cmd *cobra.Command, fn func(ctx context.Context, s *session) error) error {
	s, err := c.dial(cmd)
	if err != nil {
		return err
	}
	defer s.close()
	timeout := c.timeout
	if timeout <= 0 {
		timeout = requestTimeout
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
	defer cancel()
	return s.explain(fn(ctx, s))
}

// explain puts into words what a person can do about an error of a call. It keeps the error's
// code.
func (s *session) explain(err error) error {
	var rpc *connect.Error
	if !errors.As(err, &rpc) {
		return err
	}
	switch code := rpc.Code(); {
	case code == connect.CodeUnavailable:
		return &exitError{exitUnreachable, fmt.Errorf("controller %s is not reachable: %s", s.server, rpc.Message())}
	case code == connect.CodeDeadlineExceeded:
		return &exitError{exitUnreachable, fmt.Errorf("controller %s did not answer in time (--timeout)", s.server)}
	case code == connect.CodeUnauthenticated, code == connect.CodePermissionDenied:
		return &exitError{exitUnreachable, fmt.Errorf("controller %s refuses this certificate: %s", s.server, rpc.Message())}
	case code == connect.CodeUnimplemented:
		return &exitError{exitUsage, fmt.Errorf("controller %s is too old for this: %s", s.server, rpc.Message())}
	case code == connect.CodeCanceled:
		return &exitError{exitInterrupted, errors.New("interrupted")}
	case !connect.IsWireError(err):
		// Not the controller's answer but what came instead of one, such as half of it.
		return &exitError{exitUnreachable, fmt.Errorf("controller %s broke off: %s", s.server, rpc.Message())}
	}
	// The controller's own words name the field; its code says nothing to people.
	return &exitError{rpcExitCode(rpc.Code()), errors.New(rpc.Message())}
}
