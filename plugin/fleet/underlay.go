package fleet

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
)

// underlayKeySize is what the contract has (Welcome.underlay_key).
const underlayKeySize = 32

// reportWait is where an answer goes that no run waits for; closed if the session ends first.
type reportWait chan *dyetracev1.UnderlayReport

// ProbeUnderlay asks a host for an exchange with another's tunnel address, or what it saw of one,
// outside of any run.
func (f *Fleet) ProbeUnderlay(ctx context.Context, host string, m *dyetracev1.ProbeUnderlay) (*dyetracev1.UnderlayReport, error) {
	f.mu.Lock()
	var s *session
	if h := f.hosts[host]; h != nil {
		s = h.session
	}
	f.mu.Unlock()
	if s == nil {
		return nil, fmt.Errorf("agent of %s: %w", host, errNone)
	}
	m.Id = f.nextID()
	answer := make(reportWait, 1)
	s.mu.Lock()
	if s.ended != nil {
		s.mu.Unlock()
		return nil, fmt.Errorf("agent of %s: %w", host, s.ended)
	}
	s.reports[m.Id] = answer
	s.mu.Unlock()
	s.send(&dyetracev1.SessionResponse{Message: &dyetracev1.SessionResponse_ProbeUnderlay{ProbeUnderlay: m}})
	select {
	case r, ok := <-answer:
		if !ok {
			return nil, fmt.Errorf("agent of %s: %w", host, errLeft)
		}
		return r, nil
	case <-ctx.Done():
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.reports, m.Id)
		return nil, fmt.Errorf("agent of %s: no answer: %w", host, context.Cause(ctx))
	}
}

// reported hands over an answer that no run waits for, and says whether it was one.
func (s *session) reported(m *dyetracev1.UnderlayReport) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	answer, ok := s.reports[m.GetId()]
	if ok {
		delete(s.reports, m.GetId())
		answer <- m // has room for the one
	}
	return ok
}

// nextID returns the number of a question, which is given once.
func (f *Fleet) nextID() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.nextExplain++
	return f.nextExplain
}

const (
	// acquaintEvery is how often each host's responder is tried by another host: twice in the time
	// for which a verdict relies on that (package verdict).
	acquaintEvery = 4 * time.Minute
	// acquaintTick is how often is looked who is due, acquaintBurst how many are tried then: 2,000
	// hosts are tried within their time, each by six small packets.
	acquaintTick  = time.Second
	acquaintBurst = 16
	// acquaintTimeout is how long a host may take to tell.
	acquaintTimeout = 10 * time.Second
)

// acquaintance is what is known of a host's responder.
type acquaintance struct {
	echo *dyetracev1.UnderlayEcho
	// tried is when another host was last asked to reach it, failed how often in a row that failed,
	// and by is the last one that did.
	tried  time.Time
	failed int
	by     string
}

// Acquaint has each host's responder to underlay probes tried by another host now and then, until ctx
// is done. So it is known of each whether anything on it keeps packets out before that matters: when
// none arrive, a responder that nobody has reached of late shows nothing of the network.
func (f *Fleet) Acquaint(ctx context.Context) error {
	tick := time.NewTicker(acquaintTick)
	defer tick.Stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-tick.C:
			for _, v := range f.due(now) {
				wg.Go(func() { f.visit(ctx, v) })
			}
		}
	}
}

// visit is one host that is to try another.
type visit struct {
	from, to string
	at       netip.Addr
	port     uint32
}

// due says who is to be tried now, and by whom.
func (f *Fleet) due(now time.Time) []visit {
	f.mu.Lock()
	defer f.mu.Unlock()
	var able []*host
	for _, h := range f.hosts {
		if h.session != nil && h.known.echo.GetPort() != 0 && len(h.known.echo.GetAddresses()) > 0 {
			able = append(able, h)
		}
	}
	var visits []visit
	for _, h := range able {
		if len(able) < 2 || len(visits) >= acquaintBurst {
			break
		}
		if now.Sub(h.known.tried) < acquaintEvery {
			continue
		}
		h.known.tried = now
		addresses := h.known.echo.GetAddresses()
		at, err := netip.ParseAddr(addresses[rand.IntN(len(addresses))])
		from := able[rand.IntN(len(able))]
		for from == h {
			from = able[rand.IntN(len(able))]
		}
		if err == nil {
			visits = append(visits, visit{from.name, h.name, at, h.known.echo.GetPort()})
		}
	}
	return visits
}

// visit has it done, and notes whether it succeeded.
func (f *Fleet) visit(ctx context.Context, v visit) {
	ctx, cancel := context.WithTimeout(ctx, acquaintTimeout)
	defer cancel()
	at := v.at.As16()
	r, err := f.ProbeUnderlay(ctx, v.from, &dyetracev1.ProbeUnderlay{
		Session: rand.Uint64() | 1, DstIp: at[:], Port: v.port, Sizes: []uint32{128}, SourcePorts: 3, Repeats: 2, WaitMs: 1000,
		WithinMs: uint32((acquaintTimeout / 2).Milliseconds()),
	})
	if err != nil || r.GetError() != "" {
		return // nothing was found out: those who asked are at fault
	}
	reached := slices.ContainsFunc(r.GetAnswered(), func(n uint32) bool { return n > 0 })
	f.mu.Lock()
	defer f.mu.Unlock()
	h := f.hosts[v.to]
	if reached {
		h.known.failed = 0
		return
	}
	h.known.failed++
	h.known.by = v.from
	// Sooner again, by another: the first may be the one that cannot.
	h.known.tried = h.known.tried.Add(-acquaintEvery * 3 / 4)
}

// unreached is after how many failures in a row, by hosts chosen at random, a responder counts as
// not to be reached.
const unreached = 3

// Problems says of which hosts underlay probes will tell nothing, a line each, by host.
func (f *Fleet) Problems() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var lines []string
	for _, h := range f.hosts {
		if h.session == nil || h.known.echo == nil {
			continue
		}
		if p := h.known.echo.GetProblems(); len(p) > 0 {
			lines = append(lines, fmt.Sprintf("%s: does not answer underlay probes: %s", h.name, strings.Join(p, "; ")))
		}
		if h.known.failed >= unreached {
			lines = append(lines, fmt.Sprintf("%s: UDP port %d of its tunnel addresses (%s) is not reached, by %s last: open it, or look at the underlay",
				h.name, h.known.echo.GetPort(), strings.Join(h.known.echo.GetAddresses(), ", "), h.known.by))
		}
	}
	slices.Sort(lines)
	return lines
}
