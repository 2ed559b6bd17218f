package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"connectrpc.com/connect"

	"github.com/dyetrace/dyetrace/api/dyetrace/v1/dyetracev1connect"
	"github.com/dyetrace/dyetrace/bgp"
	"github.com/dyetrace/dyetrace/bgp/rib"
	"github.com/dyetrace/dyetrace/pki"
	"github.com/dyetrace/dyetrace/plugin/fleet"
	"github.com/dyetrace/dyetrace/plugin/inventory"
	"github.com/dyetrace/dyetrace/plugin/run"
	"github.com/dyetrace/dyetrace/stain"
)

const (
	// maxRequest bounds a user's request, in bytes. The largest is a scope of two names.
	maxRequest = 64 << 10
	// shutdownTimeout is how long requests may take to end when the server does; agents and
	// watchers have been told by then.
	shutdownTimeout = 3 * time.Second
	// watchTimeout is how long a watcher may leave a verdict unread, once the windows of HTTP/2
	// are full: a terminal that was suspended, not one that was left for the night.
	watchTimeout = 5 * time.Minute
)

// Config is what a server answers from.
type Config struct {
	Runner *run.Runner
	Fleet  *fleet.Fleet
	Book   *inventory.Book
	// Routes is what the peers of Speaker taught; both are nil where no BGP is configured.
	Routes  *rib.Table
	Speaker *bgp.Speaker
	Stain   stain.Stain
	Version string
	Started time.Time
	Log     *slog.Logger
}

// Server serves users, and agents to the fleet.
type Server struct {
	cfg     Config
	handler http.Handler
	closing chan struct{} // closed when streams that nobody else ends are to end
}

// New returns a server that does not serve yet.
func New(cfg Config) *Server {
	mux := http.NewServeMux()
	s := &Server{cfg: cfg, closing: make(chan struct{})}
	path, users := dyetracev1connect.NewControllerServiceHandler(service{cfg, s.closing}, connect.WithReadMaxBytes(maxRequest))
	mux.Handle(path, withWriter(only(pki.RoleUser, users, nil)))
	path, agents := cfg.Fleet.Handler()
	mux.Handle(path, only(pki.RoleAgent, agents, fleet.WithAgent))
	s.handler = mux
	return s
}

// Handler returns what the server serves. Requests must come over TLS with verified client
// certificates.
func (s *Server) Handler() http.Handler { return s.handler }

// Run serves TLS with the given configuration on all listeners, until ctx is done or one of them
// fails. It closes the listeners, ends the fleet's sessions, and returns when the last request has
// ended. It can be called once.
func (s *Server) Run(ctx context.Context, config *tls.Config, listeners ...net.Listener) error {
	base, cancel := context.WithCancel(context.Background())
	defer cancel()
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	srv := &http.Server{
		Handler:     s.handler,
		TLSConfig:   config,
		Protocols:   &protocols,
		BaseContext: func(net.Listener) context.Context { return base },
		ErrorLog:    slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelWarn),
		// For the handshake and the headers; a stream may take as long as it likes.
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		HTTP2: &http.HTTP2Config{
			// A peer that vanished without a word holds its connection no longer than this.
			SendPingTimeout:  15 * time.Second,
			PingTimeout:      10 * time.Second,
			WriteByteTimeout: 20 * time.Second,
		},
	}
	failed := make(chan error, len(listeners))
	for _, l := range listeners {
		go func() { failed <- srv.ServeTLS(l, "", "") }()
	}
	var err error
	ended := 0
	select {
	case <-ctx.Done():
	case err = <-failed:
		ended++
		err = fmt.Errorf("serve: %w", err)
	}
	s.cfg.Fleet.Close()
	close(s.closing)
	late, stop := context.WithTimeout(context.Background(), shutdownTimeout)
	defer stop()
	if serr := srv.Shutdown(late); serr != nil {
		cancel()
		err = errors.Join(err, srv.Close())
	}
	for ; ended < len(listeners); ended++ {
		<-failed // http.ErrServerClosed
	}
	return err
}

// only lets through requests whose certificate has the role. vouch, if any, puts the certificate's
// name into the context.
func only(role string, h http.Handler, vouch func(ctx context.Context, name string) context.Context) http.Handler {
	refusal := connect.NewErrorWriter()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name, err := admit(role, r)
		if err != nil {
			if refusal.IsSupported(r) {
				_ = refusal.Write(w, r, err) // the client is gone if this fails
				return
			}
			http.Error(w, err.Message(), http.StatusForbidden)
			return
		}
		if vouch != nil {
			r = r.WithContext(vouch(r.Context(), name))
		}
		h.ServeHTTP(w, r)
	})
}

func admit(want string, r *http.Request) (name string, refused *connect.Error) {
	if r.TLS == nil {
		return "", connect.NewError(connect.CodeUnauthenticated, errors.New("not over TLS"))
	}
	role, name, err := pki.Peer(*r.TLS)
	if err != nil {
		return "", connect.NewError(connect.CodeUnauthenticated, err)
	}
	if role != want {
		return "", connect.NewError(connect.CodePermissionDenied, fmt.Errorf(
			"certificate is for %s %s; want one for %s (URI %s://%s/NAME)", role, name, article(want), pki.Scheme, want))
	}
	return name, nil
}

func article(role string) string {
	if role == pki.RoleAgent {
		return "an agent"
	}
	return "a " + role
}

type writerKey struct{}

// withWriter lets streaming methods bound how long they wait for a client.
func withWriter(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), writerKey{}, http.NewResponseController(w))))
	})
}

// patiently calls send, which fails if the client does not read for watchTimeout.
func patiently(ctx context.Context, send func() error) error {
	rc, ok := ctx.Value(writerKey{}).(*http.ResponseController)
	if !ok {
		return send()
	}
	// The errors say that the connection knows no deadlines; those of ours do.
	_ = rc.SetWriteDeadline(time.Now().Add(watchTimeout))
	err := send()
	_ = rc.SetWriteDeadline(time.Time{})
	return err
}
