package access

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/dyetrace/dyetrace/api/dyetrace/v1/dyetracev1connect"
	"github.com/dyetrace/dyetrace/pki"
)

var (
	// ErrNoContext says that nothing tells which controller is meant.
	ErrNoContext = errors.New("no controller given")
	// ErrBadContext says that what tells it cannot be used.
	ErrBadContext = errors.New("unusable context")
)

// DefaultServerName is the name in the controller's certificate where a unix socket is dialled
// and nobody gave one.
const DefaultServerName = "controller"

// Context says how to reach one controller; a context file holds one, in YAML.
type Context struct {
	// Server is https://HOST:PORT or unix:///PATH.
	Server string `yaml:"server"`
	// ServerName is the name that the controller's certificate must bear; empty is the host in
	// Server.
	ServerName string    `yaml:"server_name"`
	TLS        pki.Files `yaml:"tls"`
	// Source is the file that it came from; empty for flags alone.
	Source string `yaml:"-"`
	// Lab is the name of the lab that was taken because it is the only one up.
	Lab string `yaml:"-"`
}

// Options are what the user gave on the command line, and where else to look. Empty fields
// are not given.
type Options struct {
	Server, ServerName string
	TLS                pki.Files
	// File is a context file, Lab the name of a lab.
	File, Lab string
	// Getenv is os.Getenv, but for tests.
	Getenv func(string) string
	// Etc and LabParent stand for /etc/dyetrace and /run/dyetrace/labs in tests.
	Etc, LabParent string
}

// Resolve finds the context: the first of the file given, the lab given, $DYETRACE_CONTEXT,
// $DYETRACE_LAB, $XDG_CONFIG_HOME/dyetrace/context.yaml, /etc/dyetrace/context.yaml, and the
// only lab that is up. Flags override what a file says; where they say everything no file is
// looked for. Errors wrap [ErrNoContext] or [ErrBadContext].
func Resolve(o Options) (Context, error) {
	if o.Getenv == nil {
		o.Getenv = os.Getenv
	}
	var c Context
	if o.Server == "" || o.TLS.CA == "" || o.TLS.Cert == "" || o.TLS.Key == "" {
		var err error
		if c, err = o.fromFile(); err != nil {
			return Context{}, err
		}
	}
	override := func(to *string, from string) {
		if from != "" {
			*to = from
		}
	}
	if o.Server != "" {
		// A name that goes with another server says nothing about this one.
		c.ServerName = ""
	}
	override(&c.Server, o.Server)
	override(&c.ServerName, o.ServerName)
	override(&c.TLS.CA, o.TLS.CA)
	override(&c.TLS.Cert, o.TLS.Cert)
	override(&c.TLS.Key, o.TLS.Key)
	if _, err := c.endpoint(); err != nil {
		return Context{}, fmt.Errorf("%s%w: %w", prefix(c.Source), ErrBadContext, err)
	}
	return c, nil
}

func prefix(source string) string {
	if source == "" {
		return ""
	}
	return source + ": "
}

func (o Options) fromFile() (Context, error) {
	if o.File != "" {
		return Read(o.File)
	}
	if o.Lab != "" {
		return o.lab(o.Lab)
	}
	if path := o.Getenv("DYETRACE_CONTEXT"); path != "" {
		return Read(path)
	}
	if name := o.Getenv("DYETRACE_LAB"); name != "" {
		return o.lab(name)
	}
	for _, path := range o.standardPaths() {
		c, err := Read(path)
		if !errors.Is(err, fs.ErrNotExist) {
			return c, err
		}
	}
	return o.onlyLab()
}

func (o Options) standardPaths() []string {
	var paths []string
	if dir := o.Getenv("XDG_CONFIG_HOME"); dir != "" {
		paths = append(paths, filepath.Join(dir, "dyetrace", "context.yaml"))
	} else if home := o.Getenv("HOME"); home != "" {
		// The default by the XDG Base Directory Specification.
		paths = append(paths, filepath.Join(home, ".config", "dyetrace", "context.yaml"))
	}
	etc := o.Etc
	if etc == "" {
		etc = "/etc/dyetrace"
	}
	return append(paths, filepath.Join(etc, "context.yaml"))
}

func (o Options) labParent() string {
	if dir := o.Getenv("DYETRACE_LAB_DIR"); dir != "" {
		return dir
	}
	if o.LabParent != "" {
		return o.LabParent
	}
	return "/run/dyetrace/labs"
}

func (o Options) lab(name string) (Context, error) {
	c, err := Read(filepath.Join(o.labParent(), name, "context.yaml"))
	if errors.Is(err, fs.ErrNotExist) {
		return Context{}, fmt.Errorf("lab %s: %w: it is not up (%s); raise it with: dyetrace lab up --lab %s", name, ErrNoContext, upLabs(o.labs()), name)
	}
	return c, err
}

// labs returns the names of labs that have a controller, sorted.
func (o Options) labs() []string {
	found, err := filepath.Glob(filepath.Join(o.labParent(), "*", "context.yaml"))
	if err != nil {
		return nil // a parent with a broken pattern in its name holds no labs
	}
	names := make([]string, len(found))
	for i, path := range found {
		names[i] = filepath.Base(filepath.Dir(path))
	}
	slices.Sort(names)
	return names
}

func upLabs(names []string) string {
	if len(names) == 0 {
		return "no lab is up"
	}
	return "up: " + strings.Join(names, ", ")
}

func (o Options) onlyLab() (Context, error) {
	switch names := o.labs(); len(names) {
	case 0:
		return Context{}, fmt.Errorf("%w; want --server, --ca, --cert and --key, or a file %s, or a lab that is up",
			ErrNoContext, strings.Join(o.standardPaths(), " or "))
	case 1:
		c, err := o.lab(names[0])
		c.Lab = names[0]
		return c, err
	default:
		return Context{}, fmt.Errorf("%w, and several labs are up (%s); want --lab NAME", ErrNoContext, strings.Join(names, ", "))
	}
}

// Read reads a context file. Paths in it may be relative to it. The error wraps [ErrBadContext],
// and fs.ErrNotExist where the file is not there.
func Read(path string) (Context, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return Context{}, fmt.Errorf("%w: %w", ErrBadContext, err)
	}
	c := Context{Source: path}
	dec := yaml.NewDecoder(bytes.NewReader(b))
	dec.KnownFields(true)
	if err := dec.Decode(&c); errors.Is(err, io.EOF) {
		return Context{}, fmt.Errorf("%s: %w: it is empty; want keys server, server_name and tls", path, ErrBadContext)
	} else if err != nil {
		return Context{}, fmt.Errorf("%s: %w: %w", path, ErrBadContext, err)
	}
	for _, p := range []*string{&c.TLS.CA, &c.TLS.Cert, &c.TLS.Key} {
		if *p != "" && !filepath.IsAbs(*p) {
			*p = filepath.Join(filepath.Dir(path), *p)
		}
	}
	return c, nil
}

// endpoint is where to dial, and what to call it.
type endpoint struct {
	baseURL    string
	serverName string
	socket     string // path of a unix socket; empty is TCP
}

func (c Context) endpoint() (endpoint, error) {
	if c.Server == "" {
		return endpoint{}, errors.New("server: missing; want https://HOST:PORT or unix:///PATH")
	}
	u, err := url.Parse(c.Server)
	if err != nil {
		return endpoint{}, fmt.Errorf("server: %w", err)
	}
	e := endpoint{serverName: c.ServerName}
	switch u.Scheme {
	case "https":
		if u.Hostname() == "" || u.Port() == "" || u.Port() == "0" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
			return endpoint{}, fmt.Errorf("server: %q; want https://HOST:PORT", c.Server)
		}
		e.baseURL = "https://" + u.Host
		if e.serverName == "" {
			e.serverName = u.Hostname()
		}
	case "unix":
		if u.Host != "" || !strings.HasPrefix(u.Path, "/") || u.Path == "/" {
			return endpoint{}, fmt.Errorf("server: %q; want unix:///PATH, three slashes", c.Server)
		}
		if e.serverName == "" {
			e.serverName = DefaultServerName
		}
		e.baseURL, e.socket = "https://"+e.serverName, u.Path
	default:
		return endpoint{}, fmt.Errorf("server: %q; want https://HOST:PORT or unix:///PATH", c.Server)
	}
	return e, nil
}

// Client returns a client of the controller's API and a function that ends its connections. It
// reads the certificates and dials nothing yet. The error wraps [ErrBadContext].
func (c Context) Client() (dyetracev1connect.ControllerServiceClient, func(), error) {
	e, err := c.endpoint()
	if err != nil {
		return nil, nil, fmt.Errorf("%s%w: %w", prefix(c.Source), ErrBadContext, err)
	}
	tlsConfig, err := pki.ClientTLS(c.TLS, e.serverName)
	if err != nil {
		return nil, nil, fmt.Errorf("%s%w: %w", prefix(c.Source), ErrBadContext, err)
	}
	transport := &http.Transport{
		TLSClientConfig:   tlsConfig,
		ForceAttemptHTTP2: true,
	}
	if e.socket != "" {
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", e.socket)
		}
	}
	client := dyetracev1connect.NewControllerServiceClient(&http.Client{Transport: transport}, e.baseURL)
	return client, transport.CloseIdleConnections, nil
}
