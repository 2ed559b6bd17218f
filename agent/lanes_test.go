package agent

import (
	"bytes"
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/api/dyetrace/v1/dyetracev1connect"
	"github.com/dyetrace/dyetrace/stain"
)

// insistent is a controller that says one thing so many times, and then nothing.
type insistent struct {
	ctx  context.Context
	word *dyetracev1.SessionResponse
	left atomic.Int64
}

func (c *insistent) Send(*dyetracev1.SessionRequest) error { return nil }

func (c *insistent) Receive() (*dyetracev1.SessionResponse, error) {
	if c.left.Add(-1) < 0 {
		<-c.ctx.Done()
		return nil, c.ctx.Err()
	}
	return c.word, nil
}

// A controller that asks for more than can be done has as much done as may be under way, and is told so of the rest where there
// is an answer for that.
func TestBusy(t *testing.T) {
	inject := &dyetracev1.Inject{Run: 1, Rate: 1, Ports: []*dyetracev1.PortRef{{Bridge: "none", Port: "none"}}}
	inject.Index, inject.SrcIp = columnsOf(2 * injectBatch)
	inject.DstIp, inject.Port = inject.SrcIp, make([]uint32, len(inject.Index))
	inject.SrcMac, inject.DstMac, inject.Ttl = make([]uint64, len(inject.Index)), make([]uint64, len(inject.Index)), make([]byte, len(inject.Index))
	for _, tt := range []struct {
		name    string
		most    int
		word    *dyetracev1.SessionResponse
		refused func(*dyetracev1.SessionRequest) bool // nil: it is not answered
	}{
		{"prepare", maxPrepare, &dyetracev1.SessionResponse{Message: &dyetracev1.SessionResponse_Prepare{
			Prepare: &dyetracev1.Prepare{Run: 2, Key: make([]byte, stain.KeySize), Total: 1, ExpiresMs: 60_000}}}, nil},
		{"inject", maxHeld / heldAtLeast, &dyetracev1.SessionResponse{Message: &dyetracev1.SessionResponse_Inject{Inject: inject}},
			func(m *dyetracev1.SessionRequest) bool {
				f := m.GetInjected().GetFailures()
				return len(f) == len(inject.Index) && f[0].Reason == errBusy.Error()
			}},
		{"arm", maxHeld / heldAtLeast, &dyetracev1.SessionResponse{Message: &dyetracev1.SessionResponse_Arm{Arm: &dyetracev1.Arm{Run: 1, Id: 3}}},
			func(m *dyetracev1.SessionRequest) bool {
				return m.GetArmed().GetId() == 3 && m.GetArmed().Error == errBusy.Error()
			}},
		{"audit", maxAudit, &dyetracev1.SessionResponse{Message: &dyetracev1.SessionResponse_Audit{Audit: &dyetracev1.Audit{Run: 1}}}, nil},
		{"finish", maxFinish, &dyetracev1.SessionResponse{Message: &dyetracev1.SessionResponse_Finish{Finish: &dyetracev1.Finish{Run: 2}}}, nil},
		{"refresh", maxRefresh, &dyetracev1.SessionResponse{Message: &dyetracev1.SessionResponse_Refresh{Refresh: &dyetracev1.Refresh{Id: 1}}}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			a := assemble(DefaultConfig(), "test", &stuck{}, nil, slog.New(slog.DiscardHandler))
			if err := a.runs.add(&dyetracev1.Prepare{Run: 1, Key: make([]byte, stain.KeySize), Total: 1000, ExpiresMs: 60_000}, time.Now()); err != nil {
				t.Fatal(err)
			}
			var parts sync.WaitGroup
			var refused atomic.Int64
			parts.Go(func() {
				for ctx.Err() == nil {
					select {
					case m := <-a.outbox.queue:
						if tt.refused != nil && tt.refused(m) {
							refused.Add(1)
						}
					case <-ctx.Done():
					}
				}
			})
			before := runtime.NumGoroutine()
			c := &insistent{ctx: ctx, word: tt.word}
			said := 3 * tt.most
			c.left.Store(int64(said))
			a.hooks.mu.Lock() // nothing ends
			parts.Go(func() { _ = a.read(ctx, c) })
			for end := time.Now().Add(deadline); c.left.Load() >= 0 && time.Now().Before(end); {
				time.Sleep(time.Millisecond)
			}
			n := runtime.NumGoroutine() - before
			for end := time.Now().Add(deadline); tt.refused != nil && refused.Load() < int64(said-tt.most) && time.Now().Before(end); {
				time.Sleep(time.Millisecond)
			}
			a.hooks.mu.Unlock()
			cancel()
			parts.Wait()
			if c.left.Load() >= 0 {
				t.Errorf("%d requests are not read", c.left.Load())
			}
			// An audit has a second one, which reads counters.
			if n > 2*tt.most+10 || n < tt.most/2 {
				t.Errorf("%d goroutines for %d requests, of which %d may be under way", n, said, tt.most)
			}
			if tt.refused != nil && refused.Load() < int64(said-tt.most) {
				t.Errorf("%d of %d are refused, %d may be under way", refused.Load(), said, tt.most)
			}
			if tt.name == "prepare" && a.runs.get(2) != nil {
				t.Error("a run that was refused is under way")
			}
		})
	}
}

// stuck is a switch that answers nothing.
type stuck struct{ hearsay }

func (*stuck) Sync(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

func columnsOf(n int) (index []uint32, addrs []byte) {
	for i := range n {
		index = append(index, uint32(i))
	}
	return index, bytes.Repeat([]byte{1}, 16*n)
}

// talker is a controller whose welcome is a large one.
type talker struct {
	dyetracev1connect.UnimplementedAgentServiceHandler
	version string
}

func (s talker) Session(_ context.Context, st *connect.BidiStream[dyetracev1.SessionRequest, dyetracev1.SessionResponse]) error {
	return st.Send(&dyetracev1.SessionResponse{Message: &dyetracev1.SessionResponse_Welcome{Welcome: &dyetracev1.Welcome{Version: s.version}}})
}

// A message of the controller's is taken up to a size, however small it comes over the wire.
func TestMessageSize(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		size int
		want connect.Code
	}{{maxMessage - 100, 0}, {maxMessage + 1, connect.CodeResourceExhausted}} {
		mux := http.NewServeMux()
		mux.Handle(dyetracev1connect.NewAgentServiceHandler(talker{version: string(bytes.Repeat([]byte{'x'}, tt.size))}))
		srv := httptest.NewUnstartedServer(mux)
		srv.EnableHTTP2 = true
		srv.StartTLS()
		defer srv.Close()
		st := newClient(srv.Client(), srv.URL+"/").Session(t.Context())
		if err := st.Send(&dyetracev1.SessionRequest{}); err != nil {
			t.Fatal(err)
		}
		m, err := st.Receive()
		if tt.want == 0 && (err != nil || len(m.GetWelcome().GetVersion()) != tt.size) || tt.want != 0 && connect.CodeOf(err) != tt.want {
			t.Errorf("%d bytes: %v, want code %d", tt.size, err, tt.want)
		}
	}
}
